# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: qga
author: The qemu.guest authors (!UNKNOWN)
short_description: Run tasks in a guest through the QEMU Guest Agent
version_added: 0.1.0
description:
  - Connects to a QEMU/KVM guest through its guest agent. The guest needs no network, no SSH server and no credentials;
    the agent that its distribution ships is enough.
  - Commands are run as O(exec_method) says, modules are piped to the interpreter, and files are copied with
    C(guest-file-*) and verified.
  - Tasks run as the user that the agent runs as, which is root almost everywhere. Use C(become) to run them as others.
options:
  address:
    description:
      - Where the guest's agent is, seen from the machine that runs Ansible. It is required, unless O(host) says so.
      - V(/run/vm1.qga) or V(unix:/run/vm1.qga) for the UNIX socket of QEMU's chardev, V(vsock:CID:PORT),
        V(tcp:HOST:PORT), or V(libvirt:DOMAIN) for a domain of libvirt, by its name or UUID.
      - The last one needs libvirt's Python library in the Python that runs Ansible (package C(python3-libvirt)).
    type: str
    vars:
      - name: ansible_qga_address
    env:
      - name: ANSIBLE_QGA_ADDRESS
    ini:
      - section: qga_connection
        key: address
  libvirt_uri:
    description:
      - Which libvirt has the domain, where O(address) is V(libvirt:DOMAIN); of no meaning otherwise. It may be a remote
        one, such as V(qemu+ssh://root@hypervisor/system).
      - The default is what the environment variable E(LIBVIRT_DEFAULT_URI) says, or V(qemu:///system).
    type: str
    vars:
      - name: ansible_qga_libvirt_uri
    env:
      - name: ANSIBLE_QGA_LIBVIRT_URI
    ini:
      - section: qga_connection
        key: libvirt_uri
  hypervisor:
    description:
      - The machine on which the socket is. The socket is forwarded by OpenSSH, so that machine needs nothing but
        C(sshd), and the user there permission to use the socket.
      - If it is the name of an inventory host, its variables say how to log in there, as for
        P(ansible.builtin.ssh#connection), passwords and jump hosts included. A host with the connection
        P(ansible.builtin.local#connection) is this machine.
      - Anything else is a destination of C(ssh) (V([USER@]HOST), V(ssh://[USER@]HOST[:PORT]), or what the user's C(ssh)
        configuration knows). The options O(ssh_common_args) and so on apply then.
      - Where the variables of that inventory host say C(ansible_become), with C(ansible_become_method),
        C(ansible_become_password) and so on, the sockets may be those of root or of another user there. A small
        program of that user leads to them then, for which the machine needs Python 3.6 or later. It ends a minute
        after its last use.
      - All guests of a hypervisor, and all tasks, go through one C(ssh). It ends a minute after the last one. Nobody is
        asked for a password or a host key.
      - With V(libvirt:DOMAIN), the domain is one of that machine's libvirt, whose socket is forwarded. O(libvirt_uri)
        is the URI there then, V(qemu:///system) if it is not set. Here, only libvirt's Python library is needed.
      - Without it, the socket is on the machine that runs Ansible.
    type: str
    vars:
      - name: ansible_qga_hypervisor
    env:
      - name: ANSIBLE_QGA_HYPERVISOR
    ini:
      - section: qga_connection
        key: hypervisor
  # The options of ansible.builtin.ssh. It reads its configuration and its environment by itself.
  ssh_args:
    description:
      - The first arguments of C(ssh), for a O(hypervisor) that is no inventory host. What the configuration and the
        environment have for P(ansible.builtin.ssh#connection) applies as well, here and in the options below.
    type: str
    vars:
      - name: ansible_ssh_args
  ssh_common_args:
    description: More arguments of C(ssh), V(-J jump.example.com) for instance, for the same hypervisors as O(ssh_args).
    type: str
    vars:
      - name: ansible_ssh_common_args
  ssh_extra_args:
    description: More arguments of C(ssh), for the same hypervisors as O(ssh_args).
    type: str
    vars:
      - name: ansible_ssh_extra_args
  ssh_executable:
    description: The program C(ssh), for the same hypervisors as O(ssh_args).
    type: str
    vars:
      - name: ansible_ssh_executable
  ssh_host_key_checking:
    description: Whether C(ssh) checks host keys, for the same hypervisors as O(ssh_args).
    type: bool
    vars:
      - name: ansible_host_key_checking
      - name: ansible_ssh_host_key_checking
  ssh_private_key_file:
    description: The private key to log in with, for the same hypervisors as O(ssh_args).
    type: str
    vars:
      - name: ansible_private_key_file
      - name: ansible_ssh_private_key_file
  host:
    description:
      - Used in place of O(address) where that is not set and this has one of its forms.
    type: str
    vars:
      - name: ansible_host
  # Not "timeout": ansible-core 2.16 puts its own of that name, for ssh's sake, in the place of the default.
  agent_timeout:
    description:
      - Seconds that one command of the agent may take, waiting for the channel included. A program run in the guest may
        take any time; each question whether it has ended is a command of its own.
    type: float
    default: 20
    vars:
      - name: ansible_qga_timeout
    env:
      - name: ANSIBLE_QGA_TIMEOUT
    ini:
      - section: qga_connection
        key: timeout
  frozen_timeout:
    description:
      - Seconds for which a guest whose filesystems are frozen, by a backup for instance, is waited for in the middle of
        a task. With V(0), it is not waited for. A task that begins in a frozen guest fails at once.
    type: float
    default: 300
    vars:
      - name: ansible_qga_frozen_timeout
    env:
      - name: ANSIBLE_QGA_FROZEN_TIMEOUT
    ini:
      - section: qga_connection
        key: frozen_timeout
  exec_method:
    description:
      - How programs are run in the guest. V(guest-exec) uses the agent's command of that name.
      - V(runner) uses a small program of this collection's that stays in the guest for a while. It takes commands from
        files, so the agent needs nothing but C(guest-file-*), and a task survives a restart of the agent. It is started
        by C(guest-exec) where the agent allows that, else as O(bootstrap) says.
      - V(auto) uses the runner for commands, and C(guest-exec) in guests in which no runner can be started. Transfers
        and the modules of this collection use C(guest-exec) where the agent allows it, which tells the signal that
        ended a program, else the runner.
    type: str
    choices: [auto, guest-exec, runner]
    default: auto
    vars:
      - name: ansible_qga_exec_method
    env:
      - name: ANSIBLE_QGA_EXEC_METHOD
    ini:
      - section: qga_connection
        key: exec_method
  bootstrap:
    description:
      - The ways, in order, in which a runner may be started in a guest whose agent does not allow C(guest-exec), and
        where no runner is installed. An empty list allows none.
      - V(udev) appends a rule to the guest's C(50-udev-default.rules) and lets the kernel report a change of
        C(/dev/null); a few seconds. V(cron) appends a line to C(/etc/crontab); up to a minute. Both lines remove
        themselves. At no moment can a user of the guest change what root runs.
      - V(udev-new) makes a file in C(/etc/udev/rules.d). For some seconds, every user of the guest can write to it, and
        so become root. Use it only where the guest has no users but root.
    type: list
    elements: str
    choices: [udev, cron, udev-new]
    default: [udev, cron]
    vars:
      - name: ansible_qga_bootstrap
    env:
      - name: ANSIBLE_QGA_BOOTSTRAP
    ini:
      - section: qga_connection
        key: bootstrap
  facts_modules:
    description:
      - The modules that gather the facts of a play, which is a setting of ansible-core's. Where M(qemu.guest.qga_facts)
        is the only one, it runs in the controller, and no Python is looked for in the guest.
      - Where there are others too, C(ansible_facts_parallel) has to be V(false) for that.
    type: list
    elements: str
    default: [smart]
    vars:
      - name: ansible_facts_modules
    env:
      - name: ANSIBLE_FACTS_MODULES
    ini:
      - section: defaults
        key: facts_modules
  pipelining:
    description:
      - Whether modules are piped to the interpreter instead of being copied to a temporary file first.
      - Ansible copies them all the same where it needs files, for C(async) for instance.
    type: bool
    default: true
    vars:
      - name: ansible_pipelining
      - name: ansible_qga_pipelining
    env:
      - name: ANSIBLE_QGA_PIPELINING
    ini:
      - section: qga_connection
        key: pipelining
  warm_python:
    description:
      - Whether modules are run in forks of an interpreter that stays in the guest, with what modules import imported
        already. All tasks but the first then take a fraction of the time. There is one interpreter per command line
        (interpreter, C(become) and C(environment)).
      - Whatever is in doubt is run as it would be without. The action C(reset_connection) of M(ansible.builtin.meta)
        ends the interpreters.
      - It needs a runner, see O(exec_method), and Python 3.8 in the guest.
    type: bool
    default: true
    vars:
      - name: ansible_qga_warm_python
    env:
      - name: ANSIBLE_QGA_WARM_PYTHON
    ini:
      - section: qga_connection
        key: warm_python
  persist:
    description:
      - Seconds for which the channel to the agent stays open after a task, for the next one. Connecting anew takes up
        to 200 milliseconds, since an idle agent looks for a client ten times a second.
      - The channel is kept by a small process of the user that runs Ansible, which others of this user's tasks then use
        by turns, one request at a time. It ends by itself. To end it at once, use the action C(reset_connection) of
        M(ansible.builtin.meta).
      - V(0) closes the channel after each task, for other programs that want to use it between tasks. Until then a
        task has the channel to itself.
      - It has no meaning for V(libvirt:DOMAIN), where libvirt has the channel.
    type: float
    default: 5
    vars:
      - name: ansible_qga_persist
    env:
      - name: ANSIBLE_QGA_PERSIST
    ini:
      - section: qga_connection
        key: persist
  max_fetch_size:
    description:
      - The largest file that may be fetched from the guest, in bytes or with a unit such as V(500M) or V(2G). What
        is more than that is not read.
      - By default it is what the guest said of the file when it was opened, and a quarter of that, or 64 MiB, for what
        it may grow meanwhile; a file that has no size, such as those of C(/proc), may have 64 MiB. In no case is it
        more than what is free on the filesystem to which the file is fetched.
    type: str
    vars:
      - name: ansible_qga_max_fetch_size
    env:
      - name: ANSIBLE_QGA_MAX_FETCH_SIZE
    ini:
      - section: qga_connection
        key: max_fetch_size
  # Not "remote_user": ansible-core gives an option of that name the value of -u and of the keyword.
  agent_user:
    description:
      - The user that the agent in the guest runs as. This tells Ansible whether C(become) is from root; it changes
        nothing in the guest. Another user in C(ansible_user), C(remote_user) or C(-u) has no effect but a warning.
    type: str
    default: root
    vars:
      - name: ansible_qga_user
notes:
  - The agent writes the arguments of the programs it starts to the guest's syslog. Nothing of a task is among them,
    since commands travel on the program's standard input.
  - The agent serves one client at a time. Tasks on one guest take turns, see O(persist); others wait up to
    O(agent_timeout).
  - A password for C(become) is given to a program that asks for it, and to nobody else. From root, hardly any asks.
  - Verbose output shows sizes and times, never commands or content.
"""

EXAMPLES = r"""
- name: Configure a guest that has no network
  hosts: vm1
  vars:
    ansible_connection: qemu.guest.qga
    ansible_qga_address: /run/vm1.qga
  tasks:
    - name: Write the message of the day
      ansible.builtin.copy:
        content: Managed without a network.
        dest: /etc/motd
        mode: "0644"

- name: Configure a guest of another machine, which needs nothing but an SSH server
  hosts: vm2
  vars:
    ansible_connection: qemu.guest.qga
    ansible_qga_address: /run/vm2.qga
    ansible_qga_hypervisor: root@hypervisor.example.com
  tasks:
    - name: See that the agent answers
      qemu.guest.qga_ping:
"""

from ansible_collections.qemu.guest.plugins.plugin_utils._bytecode import kept_bytecode

# ansible-core compiles this file in the process of each task. The rest is compiled once.
with kept_bytecode():
    from ansible_collections.qemu.guest.plugins.plugin_utils._connection import Connection

__all__ = ("Connection",)
