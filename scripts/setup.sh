#!/usr/bin/env bash
# Makes .venv ready to run FastSwitch Serve: Python, the locked packages, this checkout.
#
# usage: scripts/setup.sh [--dev]        --dev: the test and lint tools too
#
# Does only what has changed since the last time. Needs python3.11 or python3.12 with venv, and no
# root. Settings (environment):
#   DEVICE=cpu|cuda   default: cuda where nvidia-smi lists a GPU, else cpu
#   PYTHON=...        default: the first of python3.11, python3.12, python3 that is 3.11 or 3.12
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly VENV=.venv LOG=.venv/setup.log TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
readonly PIP=("$VENV/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off)

main() {
  local dev=false
  case "$*" in
    "") ;;
    --dev) dev=true ;;
    *) die "unknown argument: $*; only --dev is allowed" 2 ;;
  esac
  wait_for_other_setup

  local device runtime tools
  device=$(choose_device)
  runtime=$(fingerprint "requirements/$device.txt" pyproject.toml scripts/setup.sh)
  tools=$(fingerprint "requirements/$device.txt" requirements/dev.txt)

  make_venv "$device"
  if is_stale runtime "$runtime" || ! check_versions 2>/dev/null; then
    "install_$device"
    install_checkout
    check_versions || exit 1
    mark runtime "$runtime"
    hint_tcmalloc "$device"
  fi
  if $dev && is_stale tools "$tools"; then
    say "test and lint tools"
    logged "${PIP[@]}" --no-deps -r requirements/dev.txt
    mark tools "$tools"
  fi
  say "$VENV is ready ($device)"
}

# --- what to do -----------------------------------------------------------------------------

choose_device() {
  case "${DEVICE:-}" in
    cpu | cuda) echo "$DEVICE" ;;
    "") if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then echo cuda; else echo cpu; fi ;;
    *) die "DEVICE=$DEVICE: only cpu and cuda are allowed" 2 ;;
  esac
}

fingerprint() { sha256sum "$@" | sha256sum | cut -d' ' -f1; }

is_stale() { [ "$(cat "$VENV/.$1.stamp" 2>/dev/null)" != "$2" ]; }

mark() { echo "$2" >"$VENV/.$1.stamp"; }

# --- the stages -----------------------------------------------------------------------------

# A venv holds absolute paths and one device's packages: another place, device or Python means a new one.
make_venv() {
  local device=$1 python wanted
  if [ -z "${PYTHON:-}" ] && is_supported "$VENV/bin/python"; then
    python=$VENV/bin/python # stays with the Python it was made with, whatever PATH now says
  else
    python=$(find_python)
  fi
  wanted="$("$python" -V) $device $PWD"
  if ! is_stale venv "$wanted" && is_supported "$VENV/bin/python"; then return; fi
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python has no venv module (Debian and Ubuntu: apt-get install $(python_name "$python")-venv)"
  say "$VENV with $("$python" -V) for $device"
  [ "$python" != "$VENV/bin/python" ] || python=$(base_python)
  "$python" -m venv --clear "$VENV" >&2 || die "$python could not make $VENV"
  mark venv "$wanted"
}

find_python() {
  local name
  for name in ${PYTHON:-python3.11 python3.12 python3}; do
    if is_supported "$name"; then
      command -v "$name"
      return
    fi
  done
  if [ -n "${PYTHON:-}" ]; then die "PYTHON=$PYTHON is not Python 3.11 or 3.12"; fi
  die "no Python 3.11 or 3.12 here (Debian and Ubuntu: apt-get install python3.11 python3.11-venv), or name one: PYTHON=/path/to/python3.11"
}

is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

python_name() { "$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'; }

# The interpreter outside, since --clear removes the one inside while it runs.
base_python() { "$VENV/bin/python" -c 'import sys; print(sys._base_executable)'; }

# A package index may serve only CUDA builds as torch 2.13.0 (several GB), so the CPU build is asked for
# by its full version, and PyTorch's own index is added for this one package where the usual one lacks it.
install_cpu() {
  local torch
  torch=$(grep '^torch==' requirements/cpu.txt)
  say "$torch"
  if ! "${PIP[@]}" --no-deps "$torch" >>"$LOG" 2>&1; then
    say "$torch from $TORCH_CPU_INDEX"
    logged "${PIP[@]}" --no-deps --extra-index-url "$TORCH_CPU_INDEX" "$torch"
  fi
  say "$(count requirements/cpu.txt) packages (the first time a download of about 1 GB)"
  logged "${PIP[@]}" --no-deps -r requirements/cpu.txt
}

install_cuda() {
  say "$(count requirements/cuda.txt) packages (the first time a download of several GB)"
  logged "${PIP[@]}" --no-deps -r requirements/cuda.txt
}

install_checkout() {
  say "fastswitch"
  logged "${PIP[@]}" --no-deps --no-build-isolation -e .
}

check_versions() { "$VENV/bin/python" -m app.versions; }

# vLLM's CPU attention allocates a lot; it runs without, only slower.
hint_tcmalloc() {
  [ "$1" = cpu ] || return 0
  if ! /sbin/ldconfig -p 2>/dev/null | grep -q libtcmalloc; then
    echo "setup: hint: libtcmalloc makes vLLM faster on the CPU (Debian and Ubuntu: apt-get install libtcmalloc-minimal4)" >&2
  fi
}

# --- helpers --------------------------------------------------------------------------------

say() { printf 'setup: [%3d s] %s\n' "$SECONDS" "$1" >&2; }

die() {
  echo "setup: $1" >&2
  exit "${2:-1}"
}

count() { grep -c == "$1"; }

logged() {
  "$@" >>"$LOG" 2>&1 || die "pip failed: $(tail -n 20 "$LOG" | grep '^ERROR' | tail -n 1 | cut -c1-300) (all it said is in $LOG)"
}

wait_for_other_setup() {
  command -v flock >/dev/null || return 0
  exec 9>.setup.lock
  flock -n 9 || {
    say "waiting for another set-up of this checkout"
    flock 9
  }
}

main "$@"
