#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# No systemd: sysvinit is the first process, udev and the agent are started by its scripts, as in Devuan or antiX.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d
apt-get -q -o Acquire::Check-Valid-Until=false update
apt-get -q -y --no-install-recommends --allow-remove-essential install sysvinit-core systemd-sysv-
sed -i '/^[1-6]:.*getty/d' /etc/inittab
echo 'S0:2345:respawn:/sbin/agetty --autologin root --noissue --keep-baud 115200 ttyS0 dumb' >>/etc/inittab
sed -i 's/,x-systemd.device-timeout=60s//' /etc/fstab
# QEMU's own network, without a client of DHCP; and sshd, which the release's recipe leaves to systemd.
cat >/usr/local/sbin/network <<'END'
#!/bin/sh
until [ -e /sys/class/net/eth0 ]; do sleep 1; done
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
mkdir -p /run/sshd
/usr/sbin/sshd
END
chmod 0755 /usr/local/sbin/network
echo 'N0:2345:once:/usr/local/sbin/network' >>/etc/inittab
rm -rf /var/lib/apt/lists/*
rm -f /usr/sbin/policy-rc.d
