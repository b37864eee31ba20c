#!/usr/bin/env bash
# A Slurm of one host on loopback, for tests/test_slurm.py. Everything but the packages is in FOLDER.
#   .ci/slurm_up.sh FOLDER         installs (root, Debian or Ubuntu), starts; then: export SLURM_CONF=FOLDER/slurm.conf
#   .ci/slurm_up.sh FOLDER stop    stops what it started
set -euo pipefail
at=$1 host=$(hostname -s) PATH=$PATH:/usr/sbin
export SLURM_CONF=$at/slurm.conf

give_up() { echo "$1" >&2; exit 1; }
pid_of() { cat "$at/$1.pid" 2>/dev/null; }
until_true() { # SECONDS COMMAND...
  local tries=$(($1 * 5))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $((tries--)) -gt 0 ] || return 1
    sleep 0.2
  done
}

if [ "${2:-}" = stop ]; then
  for name in slurmd slurmctld munged; do
    pid=$(pid_of $name) || continue
    kill "$pid" 2>/dev/null && until_true 10 sh -c "! kill -0 $pid" || true
  done
  exit 0
fi

[ "$(id -u)" = 0 ] || give_up "not root"
if ! type sbatch slurmctld slurmd munged >/dev/null 2>&1; then
  command -v apt-get >/dev/null || give_up "Slurm is not installed, and there is no apt-get"
  export DEBIAN_FRONTEND=noninteractive
  guard=/usr/sbin/policy-rc.d # keeps packages from starting their daemons
  [ -e "$guard" ] || { printf '#!/bin/sh\nexit 101\n' >"$guard" && chmod +x "$guard" && trap 'rm -f "$guard"' EXIT; }
  { apt-get update -q && apt-get install -qy --no-install-recommends munge slurmctld slurmd slurm-client; } \
    >"$at/apt.log" 2>&1 || give_up "the packages cannot be installed: $(tail -n 1 "$at/apt.log")"
fi
getent hosts "$host" | grep -q '^127\.' || give_up "host name $host is not on loopback"

head -c 64 /dev/urandom >"$at/munge.key"
chmod 755 "$at"
chmod 600 "$at/munge.key"
mkdir "$at/munge" "$at/state" "$at/spool"
chown munge: "$at/munge" "$at/munge.key"
cat >"$SLURM_CONF" <<CONF
ClusterName=ci
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=26817
SlurmdPort=26818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# a requeued job starts this many seconds later, not 120
AuthInfo=socket=$at/munge/socket,cred_expire=5
StateSaveLocation=$at/state
SlurmdSpoolDir=$at/spool
SlurmctldPidFile=$at/slurmctld.pid
SlurmdPidFile=$at/slurmd.pid
SlurmctldLogFile=$at/slurmctld.log
SlurmdLogFile=$at/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=10
MinJobAge=3600
# the node may promise more than the machine has
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=96 RealMemory=256000
PartitionName=all Nodes=ALL Default=YES
CONF

runuser -u munge -- munged --socket="$at/munge/socket" --key-file="$at/munge.key" --pid-file="$at/munge/pid" \
  --log-file="$at/munge/log" --seed-file="$at/munge/seed" || give_up "munged does not start"
ln -s munge/pid "$at/munged.pid"
slurmctld || give_up "slurmctld does not start"
until_true 20 scontrol ping || give_up "slurmctld does not answer"
slurmd || give_up "slurmd does not start"
until_true 30 sh -c 'sinfo -h -o %t | grep -q idle' || give_up "the node does not become idle: $(sinfo -h -o '%t %E')"
