#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes a bare Debian tree into a test guest. image.py runs this as root inside the tree (chroot) with
#   RELEASE  the release's code name, also the guest's host name
#   SSH_KEY  the public key that may log in as root
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Packages must not start their services: this chroot has no init of its own, and an agent would run on the host.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d

# An initrd with just what mounts the root filesystem is a third of the size, so it unpacks faster under emulation.
# Written before initramfs-tools is installed, so that the initrd is built once.
mkdir -p /etc/initramfs-tools/conf.d
echo 'MODULES=list' >/etc/initramfs-tools/conf.d/lab
printf '%s\n' virtio_pci virtio_blk ext4 >/etc/initramfs-tools/modules

# A mirror that lags behind is good enough for a test guest. Only the age of its lists is not checked; signatures are.
apt-get -q -o Acquire::Check-Valid-Until=false update
# Newer releases keep hwclock, which guest-set-time needs, in a package of its own; older ones do not have that package.
hwclock=$(apt-cache --names-only search '^util-linux-extra$' | cut -d' ' -f1)
# shellcheck disable=SC2086  # empty where there is no such package
apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-confold install \
    linux-image-cloud-amd64 initramfs-tools systemd-sysv udev dbus \
    qemu-guest-agent python3 python3-apt sudo openssh-server cron \
    iproute2 procps e2fsprogs util-linux less $hwclock

echo "$RELEASE" >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$RELEASE" >/etc/hosts
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id

mkdir -p /small
cat >/etc/fstab <<'END'
LABEL=root   /       ext4  defaults                                   0 0
LABEL=small  /small  ext4  defaults,nofail,x-systemd.device-timeout=60s 0 0
END

# The console is the path that does not depend on the agent: a root shell on the first serial line. It has neither
# echo nor prompt, so that what comes back is only what a command printed. Kernel and boot messages go to the second
# serial line (see vm.py), where they cannot mix into it.
mkdir -p /etc/systemd/system/serial-getty@ttyS0.service.d
cat >/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noissue --keep-baud 115200 ttyS0 dumb
END
cat >/etc/profile.d/serial-console.sh <<'END'
if [ "$(tty)" = /dev/ttyS0 ]; then
    stty -echo
    PS1='' PS2='' exec sh
fi
END
: >/root/.hushlogin
systemctl enable serial-getty@ttyS0.service
systemctl mask serial-getty@ttyS1.service getty@tty1.service

# A guest with a NIC gets its address from QEMU's own DHCP server; one without waits for nothing.
cat >/etc/systemd/network/lab.network <<'END'
[Match]
Name=eth*

[Network]
DHCP=yes
END
rm -f /etc/resolv.conf
echo 'nameserver 10.0.2.3' >/etc/resolv.conf
systemctl disable systemd-networkd.service systemd-networkd.socket ssh.service
systemctl enable ssh.socket
echo 'SUBSYSTEM=="net", KERNEL=="eth*", TAG+="systemd", ENV{SYSTEMD_WANTS}+="systemd-networkd.service"' \
    >/etc/udev/rules.d/90-lab-nic.rules
mkdir -p -m 0700 /root/.ssh
echo "$SSH_KEY" >/root/.ssh/authorized_keys

# What a guest that lives for minutes does not need. Under emulation each of these costs part of a second.
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer man-db.timer logrotate.timer systemd-timesyncd.service systemd-pstore.service \
    systemd-networkd-wait-online.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service \
    modprobe@fuse.service modprobe@loop.service \
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
    sys-fs-fuse-connections.mount
# Drivers that udev would load for devices no test uses.
cat >/etc/modprobe.d/lab.conf <<'END'
blacklist aesni_intel
blacklist ata_generic
blacklist ata_piix
blacklist crc32_pclmul
blacklist crct10dif_pclmul
blacklist floppy
blacklist ghash_clmulni_intel
blacklist i2c_piix4
blacklist kvm_amd
blacklist psmouse
blacklist sha512_ssse3
blacklist sha256_ssse3
blacklist sha1_ssse3
blacklist pcspkr
blacklist evdev
END

apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/*.log /var/log/apt /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
rm -f /usr/sbin/policy-rc.d
