"""No call that only POSIX systems have without an alternative for the others.

macOS and Windows are supported by design and not tested here, so this reads the sources. Such a
call is guarded in the same function, or in the `if` around it: by a check of the platform or of the
attribute, or by catching what its absence raises.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mtxl_rl"
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
ATTRIBUTES = {
    "os": {
        *("chown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid"),
        *("getpgrp", "getuid", "killpg", "link", "mkfifo", "nice", "openpty", "pipe2"),
        *("posix_spawn", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "setpgid"),
        *("setsid", "statvfs", "symlink", "sync", "sysconf", "uname", "wait", "wait3", "wait4"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP"),
        *("SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "pause", "pthread_kill"),
        *("pthread_sigmask", "setitimer", "sigpending", "sigwait", "siginterrupt"),
    },
}
METHODS = {"hardlink_to", "symlink_to"}
GUARDS = (
    "sys.platform",
    "os.name",
    "hasattr(",
    "except OSError",
    "except ImportError",
    ".exists()",
)


def uses(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Where a tree uses something that only POSIX systems have, and what."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node, str(node.module)
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in ATTRIBUTES.get(owner, ()) or node.attr in METHODS:
                yield node, f"{owner}.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_path = node.value.startswith(("/proc/", "/dev/", "/tmp/", "/sys/"))
            if is_path or node.value == "fork":
                yield node, repr(node.value)


def unguarded_uses(source: str) -> list[str]:
    """The uses in a module that no enclosing function or `if` guards."""
    tree = ast.parse(source)
    scopes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    guarded = {
        inner
        for scope in scopes
        if any(guard in ast.unparse(scope) for guard in GUARDS)
        for inner in ast.walk(scope)
    }
    return [f"{what} in line {node.lineno}" for node, what in uses(tree) if node not in guarded]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_a_module_has_an_alternative_for_what_only_posix_has(path: Path) -> None:
    assert unguarded_uses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import fcntl",
        "from pwd import getpwuid",
        "import os\nos.fork()",
        "import signal\nsignal.signal(signal.SIGUSR1, f)",
        "import os\ndef f():\n    return os.sched_getaffinity(0)",
        "path.symlink_to(other)",
        "open('/proc/cpuinfo')",
        "multiprocessing.get_context('fork')",
    ],
)
def test_the_search_finds_what_has_no_alternative(source: str) -> None:
    assert len(unguarded_uses(source)) == 1


def test_text_files_are_read_and_written_as_utf_8() -> None:
    """Windows takes another encoding where none is named."""
    places = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            is_text = node.func.attr in ("read_text", "write_text")
            if is_text and "encoding" not in {keyword.arg for keyword in node.keywords}:
                places.append(f"{path.name}:{node.lineno}")
    assert places == []
