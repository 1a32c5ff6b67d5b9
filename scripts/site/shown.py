"""Runs what the pages show, and holds the commands that they name against --help.

  shown.py flags           every `nearshore ...` and `scripts/...` of the pages: do subcommand and flags exist?
  shown.py run PAGE...     runs the console blocks of these pages; without pages, those of docs/quickstart
  shown.py show PAGE...    the same, but prints what the commands say and compares nothing, for who writes a page

A page is one shell session in an empty folder. In a console block lines behind `$ ` are typed (`> ` goes on), the others
are the output: `…` in a line is any text, a line of `…` alone is any lines. A command that ends with `# fails` must fail,
others must not. Above a block may stand

  <!-- file: NAME -->         it is written to this file
  <!-- append: NAME -->       it is added to this file
  <!-- figures: WHY -->       any number in the output fits a number that is shown
  <!-- not run: REASON -->    it is not run; a block of shell on a page that is run needs a reason
  <!-- from: FILE PART -->    links.py: it is what stands in FILE between `begin PART` and `end PART`
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from pages import ROOT, all_pages

NEARSHORE = os.environ.get("NEARSHORE_BIN") or str(ROOT / "target" / "release" / "nearshore")
# A command on a page is for a reader who waits for it.
COMMAND_MAX = 300
SHELL = ("sh", "bash", "shell", "zsh", "")
# What was true on its day.
DATED = ("docs/decisions/", "docs/measurements/", "CHANGELOG.md")
# These scripts give options on: to a command of nearshore, to a program of which this is the source, or to cargo.
GIVE_ON = {"scripts/demo": ["demo"], "scripts/chaos": "tests/chaos/main.rs", "scripts/test": None, "scripts/bench": None}


def fail(text):
    sys.exit(f"docs: error: {text}")


# --- flags -------------------------------------------------------------------------------------------------------

helps = {}


def help_of(words):
    """What `nearshore WORDS --help` prints; nothing if there is no such command."""
    key = tuple(words)
    if key not in helps:
        said = subprocess.run([NEARSHORE, *words, "--help"], capture_output=True, text=True, check=False)
        helps[key] = said.stdout if said.returncode == 0 else None
    return helps[key]


def subcommands(text):
    below = re.search(r"^Commands:\n((?:  .*\n|\n)*)", text, re.MULTILINE)
    return set(re.findall(r"^  ([a-z-]+)", below.group(1), re.MULTILINE)) if below else set()


def has(text, flag):
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text) is not None


def wrong_flags(words, flags):
    """What is wrong with `nearshore WORDS... FLAGS...`."""
    path = []
    for word in words:
        names = subcommands(help_of(path))
        if not names:
            break
        if word.strip("[]") not in names:
            return f"nearshore {' '.join(path)} has no command {word}" if re.fullmatch(r"[a-z-]+", word) else None
        path.append(word)
    lacking = [flag for flag in flags if not has(help_of(path), flag)]
    return f"nearshore {' '.join(path)} has no {', '.join(lacking)}" if lacking else None


def split(command):
    """The words of a command before its end, and the flags among them."""
    words = re.split(r" *(?:[|;&#<]|\\$|>|$)", command, maxsplit=1)[0].split()
    plain = [word for word in words if not word.startswith(("-", "[-"))]
    flags = [re.match(r"\[*(--?[A-Za-z][\w-]*)", word) for word in words]
    return plain, [found.group(1) for found in flags if found]


def commands_of(page):
    for block in page.blocks:
        for nth, line in enumerate(re.sub(r"\\\n(?:> )?\s*", " ", block.text).splitlines(), 1):
            yield block.line + nth, line.removeprefix("$ ").strip()
    yield from page.spans()


def check_flags():
    wrong, checked = [], 0
    for page in all_pages():
        if page.path.startswith(DATED):
            continue
        for line, text in commands_of(page):
            text = re.sub(r"^(?:[A-Z_]+=\S+ +)*(?:\"?\$REPO\"?/)?", "", text)
            name = text.split(" ")[0]
            words, flags = split(text)
            if name == "nearshore" and len(words) > 1:
                said = wrong_flags(words[1:], flags)
            elif re.fullmatch(r"scripts/[a-z-]+(?:/[a-z-]+)*", name) and not (ROOT / name).is_dir():
                said = script_flags(name, flags)
            else:
                continue
            checked += 1
            if said:
                wrong.append(f"{page.path}:{line}: {said}")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"docs: {checked} commands on pages exist with their flags", file=sys.stderr)


def script_flags(name, flags):
    if not (ROOT / name).is_file():
        return f"{name} does not exist"
    text = (ROOT / name).read_text(encoding="utf-8")
    if name in GIVE_ON:
        other = GIVE_ON[name]
        if other is None:
            return None
        if isinstance(other, list):
            text += help_of(other)
        else:  # names of options as text
            text += re.sub(r'"(\w+)"', r"--\1", (ROOT / other).read_text(encoding="utf-8"))
    lacking = [flag for flag in flags if not has(text, flag)]
    return f"{name} has no {', '.join(lacking)}" if lacking else None


# --- sessions ----------------------------------------------------------------------------------------------------


class Shell:
    """A bash that runs one command after the other, and says how each ended."""

    def __init__(self, folder):
        self.folder = folder
        tools = {"REPO": str(ROOT), "PATH": f"{pathlib.Path(NEARSHORE).parent}:{os.environ['PATH']}"}
        quiet = {"NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8", "NEARSHORE_BIN": NEARSHORE}
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, cwd=folder, env={**os.environ, **quiet, **tools}, start_new_session=True)

    def run(self, command):
        """Its output and its exit code."""
        step = self.folder.parent / "step"
        step.write_text(command + "\n", encoding="utf-8")
        end = "\x1e"
        self.process.stdin.write(f". '{step}' </dev/null; printf '{end}%d\\n' $?\n")
        self.process.stdin.flush()
        limit = threading.Timer(COMMAND_MAX, self.kill)
        limit.start()
        said = ""
        try:
            for line in self.process.stdout:
                before, found, after = line.partition(end)
                said += before
                if found:
                    return said, int(after)
        finally:
            limit.cancel()
        return said, None

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self):
        """Ends the shell and all that works below its folder, also what it put into sessions of their own."""
        self.kill()
        self.process.wait()
        for one in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                where = os.readlink(one / "cwd")
                if where == str(self.folder) or where.startswith(f"{self.folder}/"):
                    os.kill(int(one.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


def steps(block):
    """The commands of a block: line, command, expected output."""
    command, output = [], []  # what stands before the first command
    for nth, line in enumerate(block.text.splitlines(), 1):
        if line.startswith("$ "):
            command, output = [line[2:]], []
            yield block.line + nth, command, output
        elif line.startswith("> ") and not output:
            command.append(line[2:])
        else:
            output.append(line)


NUMBER = r"[-+]?(?:\d+(?:[.,]\d+)*|\.\d+)"


def literally(text, figures):
    """A pattern for this part of a line; with `figures` any number stands for any, and blanks for blanks."""
    if not figures:
        return re.escape(text)
    parts = re.split(rf"({NUMBER}| +)", text)
    return "".join(NUMBER if re.fullmatch(NUMBER, one) else " +" if one.isspace() else re.escape(one) for one in parts)


def fits(expected, said, figures):
    lines = [line.rstrip() for line in expected]
    while lines and not lines[-1]:
        lines.pop()

    def pattern(line):
        if line.strip() == "…":
            return r"(?:.*\n)*?"
        return ".*?".join(literally(part, figures) for part in line.split("…")) + r"\s*?\n"

    actual = "".join(f"{line.rstrip()}\n" for line in said.rstrip().splitlines())
    return re.fullmatch("".join(map(pattern, lines)), actual) is not None


def run_page(page, folder, only_show):
    shell, commands = Shell(folder), 0
    try:
        for block in page.blocks:
            name = block.says.get("file") or block.says.get("append")
            if name:
                with (folder / name).open("w" if "file" in block.says else "a", encoding="utf-8") as file:
                    file.write(block.text + "\n")
            elif block.language in SHELL and "not run" not in block.says:
                fail(f"{page.path}:{block.line}: a block of shell that is not run has no <!-- not run: REASON -->")
            elif block.language == "console":
                for line, command, expected in list(steps(block)):
                    text = "\n".join(command)
                    said, code = shell.run(text)
                    if only_show:
                        print(f"$ {text}\n{said}" + ("" if code == 0 else f"[{code}]"), flush=True)
                        continue
                    where = f"{page.path}:{line}: {text}"
                    if code is None:
                        fail(f"{where}\nthe shell ended, or it took over {COMMAND_MAX} s; until then it said:\n{said}")
                    if (code != 0) != text.rstrip().endswith("# fails"):
                        fail(f"{where}\nended with {code} and said:\n{said}")
                    if not fits(expected, said, "figures" in block.says):
                        fail(f"{where}\nsaid\n{said}\nand the page shows\n" + "\n".join(expected))
                    commands += 1
    finally:
        shell.close()
    return commands


def run(paths, only_show=False):
    pages = {page.path: page for page in all_pages()}
    chosen = paths or [path for path in pages if path.startswith("docs/quickstart/")]
    total = 0
    for path in chosen:
        if path not in pages:
            fail(f"{path} is no page of the repository")
        work = pathlib.Path(tempfile.mkdtemp(prefix="nearshore.docs.")).resolve()
        (work / "here").mkdir()
        started = time.monotonic()
        try:
            commands = run_page(pages[path], work / "here", only_show)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        total += commands
        print(f"docs: {path}: {commands} commands, {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(f"{total} passed, 0 failed")


def main():
    mode, *rest = sys.argv[1:] or ["help"]
    if mode == "flags" and not rest:
        check_flags()
    elif mode in ("run", "show"):
        run(rest, mode == "show")
    else:
        sys.exit(__doc__)


main()
