"""`sandbox completion`: a shell's completion of this command line, made by shtab from the parsers."""

import argparse
import re
from typing import Any

SHELLS = ("bash", "zsh", "fish")
# What completes a value, by the option's or argument's metavar.
_IMAGES, _SOURCES, _IDS, _JOBS, _COMMAND = ("images", "sources", "ids", "jobs", "command")
_KINDS = {
    "IMAGE": _IMAGES,
    "IMAGE [PATH]": _IMAGES,
    "SRC": _SOURCES,
    "[NAME:]SRC": _SOURCES,
    "IMAGE|DIR": _SOURCES,
    "ID": _IDS,
    "COMMAND": _COMMAND,
    **dict.fromkeys(
        ("FILE", "PATH", "NODE", "SRC[:DEST]", "SRC[=DEST]", "FILE|none", "FILE|-|fd:N"),
        "file",
    ),
    **dict.fromkeys(("DIR", "tmpfs|DIR"), "directory"),
}
# NAME means an image of these commands.
_NAMING = ("sandbox image rollback", "sandbox image history", "sandbox image tag")

# These take options and a command apart themselves.
_RUNNING = ("sandbox run", "sandbox ci run")

# Each asks the command itself for what there is: scripts need no knowledge of the home.
_BASH = r"""
_sandbox_names() { sandbox image ls 2>/dev/null | cut -f1 | tr ',' '\n' | sed '/^$/d'; }
_sandbox_images() { compgen -W "$(_sandbox_names)" -P "${1%%[!@]*}" -- "${1#@}"; }
_sandbox_running() { sandbox ps 2>/dev/null | awk -F '\t' 'NR > 1 { print $1; if ($2 != "-") print $2 }'; }
_sandbox_ids() { compgen -W "$(_sandbox_running)" -- "$1"; }
_sandbox_jobs() { compgen -W "$(sandbox job ls 2>/dev/null | cut -f1)" -- "$1"; }
_sandbox_command() { compgen -c -- "$1"; compgen -f -- "$1"; }

# The part after NAME: and BASE+ is a file or an @image.
_sandbox_sources_and_files() {
  local part="${1##*[:+]}" head
  head="${1%"$part"}"
  if [[ $part == @* ]]; then
    compgen -P "$head@" -W "$(_sandbox_names)" -- "${part#@}"
  else
    compgen -P "$head" -f -- "$part"
    [[ -n $part ]] || compgen -P "$head@" -W "$(_sandbox_names)"
  fi
}

# readline takes words apart at : = and @, the command does not: put them together, and give back what readline wants.
_sandbox() {
  local at cur started
  for ((at = 2; at < COMP_CWORD; at++)); do
    if [[ ${COMP_WORDS[1]} == @(run|exec) && ${COMP_WORDS[at]} == -- ]]; then
      if declare -F _command_offset >/dev/null; then
        _command_offset $((at + 1))
      else
        started=-f
        ((COMP_CWORD > at + 1)) || started=-c
        mapfile -t COMPREPLY < <(compgen "$started" -- "${COMP_WORDS[COMP_CWORD]}")
      fi
      return
    fi
  done
  local -a COMP_WORDS_SEEN
  read -ra COMP_WORDS_SEEN <<<"${COMP_LINE:0:COMP_POINT}"
  [[ ${COMP_LINE:0:COMP_POINT} != *[[:space:]] ]] || COMP_WORDS_SEEN+=("")
  cur="${COMP_WORDS_SEEN[-1]}"
  if [[ $cur == --*=* ]]; then
    COMP_WORDS_SEEN[-1]="${cur%%=*}"
    COMP_WORDS_SEEN+=("${cur#*=}")
  fi
  COMP_WORDS=("${COMP_WORDS_SEEN[@]}")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  cur="${COMP_WORDS[COMP_CWORD]}"
  _shtab_sandbox
  local last="${cur##*[$COMP_WORDBREAKS]}"
  local before="${cur%"$last"}"
  COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
"""
_ZSH = r"""
_sandbox_names() { sandbox image ls 2>/dev/null | cut -f1 | tr ',' '\n' | sed '/^$/d' }
_sandbox_images() { compset -P '@'; compadd -- ${(f)"$(_sandbox_names)"} }
_sandbox_running() { sandbox ps 2>/dev/null | awk -F '\t' 'NR > 1 { print $1; if ($2 != "-") print $2 }' }
_sandbox_ids() { compadd -- ${(f)"$(_sandbox_running)"} }
_sandbox_jobs() { compadd -- ${(f)"$(sandbox job ls 2>/dev/null | cut -f1)"} }
_sandbox_sources_and_files() { compset -P '*[:+]'; compadd -- @${^${(f)"$(_sandbox_names)"}}; _files }
# The words after -- are a command line of their own.
_sandbox_line() {
  local at=${words[(i)--]}
  if (( at < CURRENT )) && [[ ${words[2]} == (run|exec|ci) ]]; then
    shift $at words
    (( CURRENT -= at ))
    _normal
  else
    _shtab_sandbox "$@"
  fi
}
"""
_FISH = r"""
function _sandbox_names
  sandbox image ls 2>/dev/null | cut -f1 | string split ',' | string match -v ''
end
function _sandbox_ids
  sandbox ps 2>/dev/null | awk -F '\t' 'NR > 1 { print $1; if ($2 != "-") print $2 }'
end
function _sandbox_sources
  set -l word (commandline -ct)
  set -l head (string match -r '^.*[:+]' -- $word; or echo '')
  set -l part (string replace -r '^.*[:+]' '' -- $word)
  printf '%s\n' $head@(_sandbox_names) $head(__fish_complete_path $part)
end
# The words after -- are a command line of their own; without it a program is looked for.
function _sandbox_command
  set -l words (commandline -opc)
  if set -l at (contains -i -- -- $words)
    set -l inner (string escape -- $words[(math $at + 1)..] 2>/dev/null)
    complete -C (string join ' ' -- $inner (commandline -ct))
  else if not string match -q -- '-*' (commandline -ct)
    complete -C (commandline -ct)
  end
end
"""
_PREAMBLES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_FUNCTIONS = {
    _IMAGES: {"bash": "_sandbox_images", "zsh": "_sandbox_images", "fish": "(_sandbox_names)"},
    _SOURCES: {
        "bash": "_sandbox_sources_and_files",
        "zsh": "_sandbox_sources_and_files",
        "fish": "(_sandbox_sources)",
    },
    _IDS: {"bash": "_sandbox_ids", "zsh": "_sandbox_ids", "fish": "(_sandbox_ids)"},
    _JOBS: {"bash": "_sandbox_jobs", "zsh": "_sandbox_jobs", "fish": "(sandbox job ls 2>/dev/null | cut -f1)"},
    _COMMAND: {"bash": "_sandbox_command", "zsh": "_normal", "fish": "(_sandbox_command)"},
}


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    about = "Print a script that completes this command line, names of images, running sandboxes and jobs included."
    notes = """\
Bash: sandbox completion bash >~/.local/share/bash-completion/completions/sandbox
Zsh: sandbox completion zsh >DIRECTORY-OF-FPATH/_sandbox
Fish: sandbox completion fish >~/.config/fish/completions/sandbox.fish"""
    parser = subparsers.add_parser(
        "completion", help="a shell's completion of this command line", description=about, epilog=notes
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def main(args: argparse.Namespace) -> int:
    """Print it. Raises HostError."""
    print(script(args.shell))
    return 0


def script(shell: str) -> str:
    """What `shell` is to read. Raises HostError where shtab is not installed."""
    try:
        import shtab
    except ImportError:
        from sandbox.errors import HostError

        raise HostError("shtab, which makes completions, is not installed", hint="pip install 'shtab>=1.13'") from None
    from sandbox.cli.whole import whole_parser

    whole, _ = whole_parser()
    _mark(whole)
    text: str = shtab.complete(whole, shell, preamble=_PREAMBLES[shell])
    if shell == "bash":
        # The last `complete` of a command is the one that counts.
        text += "\ncomplete -o bashdefault -F _sandbox sandbox"
    elif shell == "zsh":
        # Both ways in are behind the functions: an eval, and the file as an autoloaded function.
        functions, mark, ways_in = text.rpartition("typeset -A opt_args")
        text = functions + mark + ways_in.replace("_shtab_sandbox", "_sandbox_line")
    return text


def _mark(parser: argparse.ArgumentParser) -> None:
    """Tell shtab of every value what completes it; in metavars only what its scripts need not quote."""
    if parser.prog in _RUNNING:
        parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                _mark(command)
        elif action.nargs != 0:
            kind = _kind(parser.prog, action)
            if kind and not action.choices:
                action.complete = _FUNCTIONS.get(kind) or _shtab_kind(kind)  # type: ignore[attr-defined]
            if action.metavar:
                action.metavar = re.sub(r"[^\w]+", " ", str(action.metavar)).strip()


def _shtab_kind(kind: str) -> Any:
    import shtab

    return shtab.FILE if kind == "file" else shtab.DIRECTORY


def _kind(prog: str, action: argparse.Action) -> str | None:
    if action.dest == "job":
        return _JOBS
    if prog in _NAMING and action.dest == "name":
        return _IMAGES
    return _KINDS.get(str(action.metavar))
