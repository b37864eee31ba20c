# Shared by submit*.slurm, which source it in the repository: log file, name, environment, array and signals.

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # of this task alone, for scontrol
job=${job:-${SLURM_JOB_ID:-}}
child='' stopped=''

# Slurm opens the log before a job can make a folder: slurm_<job>.log starts here and moves to $LOGS.
move_log() {
  local log=slurm_${SLURM_JOB_ID:-}.log name=${SLURM_JOB_NAME:-}
  name=${LOGS:-logs}/${name%% *}_$job${SLURM_RESTART_COUNT:+_restart$SLURM_RESTART_COUNT}.log
  [ -n "$job" ] && [ -f "$log" ] || return 0
  mkdir -p "${LOGS:-logs}"
  ln "$log" "$name" && rm "$log" || true # a link: on another file system the open log stays where it is
}

# nf-imit becomes "nf-imit model llama3_8b pc 1", unless sbatch --job-name gave a name.
name_job() {
  local words="$*"
  case ${SLURM_JOB_NAME:-} in
    nf-prep | nf-imit | nf-pred)
      words="$SLURM_JOB_NAME ${words//--/}"
      scontrol update JobId="$job" JobName="${words:0:200}" || true
      ;;
  esac
}

# ENV=/path/to/venv sbatch ...; default: .venv of this folder
start_environment() {
  source "${ENV:-.venv}/bin/activate"
}

# Print such as 2/4 for the second of four array tasks, nothing outside an array.
array_shard() {
  [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || return 0
  local step=${SLURM_ARRAY_TASK_STEP:-1} count
  count=$(((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN) / step + 1))
  if [ "$count" != "$SLURM_ARRAY_TASK_COUNT" ]; then
    echo "error: --array with gaps: give a range such as 1-8; what is on disk is not done again" >&2
    return 2
  fi
  echo "$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / step + 1))/$count"
}

stop() {
  stopped=$1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}

# run SCRIPT ARGUMENTS...: run it with python (LAUNCH="accelerate launch": on all GPUs of the job) and exit
# with its status. USR1, which Slurm sends before the time is up, stops it after a clean exit and requeues the
# job, which resumes; SIGTERM (scancel) stops it.
run() {
  local status=0 shard
  trap 'stop requeue' USR1
  trap 'stop end' TERM INT
  shard=$(array_shard)
  move_log
  name_job "${@:2}"
  start_environment
  [ -z "$job" ] || echo "$(date +%FT%T) job $job on $(hostname):$(printf ' %q' "$@")${shard:+, shard $shard}"
  ${LAUNCH:-python} "$@" ${shard:+--shard "$shard"} &
  child=$!
  [ -z "$stopped" ] || stop "$stopped"
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends wait early
  wait "$child" || status=$?
  if [ "$stopped" = requeue ] && [ "$status" != 0 ]; then
    echo "the time is nearly up: job $job goes back into the queue and resumes there" >&2
    scontrol requeue "$job" && exit "$status"
    echo "it cannot be requeued: submit it again, what is on disk is not done again" >&2
  elif [ "$status" != 0 ] && [ -n "$job" ]; then
    echo "job $job failed with exit code $status: jobs that depend on it are cancelled" >&2
  fi
  exit "$status"
}
