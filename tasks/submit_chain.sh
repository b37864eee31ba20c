#!/usr/bin/env bash
# Usage: tasks/submit_chain.sh MODEL DATASET ARRAY_SIZE [flags]
#        tasks/submit_chain.sh llama3_8b commonsense 8 --pc 1 2 --layer selected
# Submits preparation -> control -> report -> figures; each starts when the one before has succeeded, and is
# cancelled when it has failed: its log in logs/ says why. The same command resumes: what is on disk is kept.
# Control and report are arrays of ARRAY_SIZE tasks. Flags of the grid (--pc --clf --layer --levels) go to these
# two, --imit_* and --pred_* to one (default: all experiments of the config), all others also to the preparation.
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $# -ge 3 && $3 =~ ^[1-9][0-9]*$ ]] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 dataset=$2 size=$3
shift 3

prepare=() grid=() control=(--imit_exp_end -1) report=(--pred_exp_end -1) drawn=() flag=''
for word in "$@"; do
  case $word in --*) flag=$word ;; esac
  case $flag in
    --pc | --clf | --layer | --levels) grid+=("$word") ;;
    --imit_*) control+=("$word") ;;
    --pred_*) report+=("$word") ;;
    *) prepare+=("$word") ;;
  esac
  case $flag in --results | --log_level) drawn+=("$word") ;; esac
done
common=(--dataset "$dataset" "${prepare[@]}")

ids=()
trap '[ $? = 0 ] || [ ${#ids[@]} = 0 ] || { echo "submitting failed: ${ids[*]} cancelled" >&2; scancel "${ids[@]}"; }' EXIT

submit() { # NAME, then options and arguments of sbatch: prints the job
  local name=$1 id after=()
  shift
  [ ${#ids[@]} = 0 ] || after=(--dependency="afterok:${ids[-1]}" --kill-on-invalid-dep=yes)
  id=$(sbatch --parsable --job-name="nf-$name $model $dataset" "${after[@]}" "$@")
  ids+=("${id%%;*}")
  echo "$name ${ids[-1]}"
}

submit prep submit.slurm --model "$model" "${common[@]}"
submit imit --array="1-$size" submit_imit.slurm --model "$model" "${common[@]}" "${grid[@]}" "${control[@]}"
submit pred --array="1-$size" submit_pred.slurm --config_s "$model" "${common[@]}" "${grid[@]}" "${report[@]}"
figures=$(printf ' %q' --model "$model" --dataset "$dataset" "${drawn[@]}")
submit plot --output=slurm_%j.log --mem=16G --time=01:00:00 < <(
  echo '#!/usr/bin/env bash'
  grep -E '^#SBATCH --(account|partition|qos)=' submit.slurm || true
  printf '%s\n' 'set -euo pipefail' 'source tasks/slurm_lib.sh' move_log start_environment
  echo "python plot_imit.py --all$figures && python plot_pred.py --all$figures"
)
