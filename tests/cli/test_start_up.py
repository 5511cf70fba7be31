"""Commands start fast: what they do not need they do not import."""

import pkgutil
import subprocess
import sys

import click
import pytest

import bitinglip.cli
from bitinglip.cli.root import COMMANDS, cli
from tests.cli.conftest import Run

COMPLETION = {"_BITINGLIP_COMPLETE": "bash_complete", "COMP_WORDS": "bitinglip s", "COMP_CWORD": "1"}

MODULES = sorted(module.name for module in pkgutil.iter_modules(bitinglip.cli.__path__))


def list_imports(code: str) -> set[str]:
    """The top-level names that a new interpreter has imported after running this."""
    code += "\nimport sys; sys.stderr.write(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def walk(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    ctx = click.Context(command)
    found = []
    for name in command.list_commands(ctx):
        child = command.get_command(ctx, name)
        assert child is not None
        found += walk(child, (*path, name))
    return found


LEAVES = walk(cli)


def test_help_imports_none_of_the_big_packages() -> None:
    code = "from bitinglip.cli import main\ntry: main()\nexcept SystemExit as exc: assert exc.code == 0"
    imports = list_imports(f"import sys; sys.argv = ['bitinglip', '--help']\n{code}")
    assert not imports & {"pydantic", "sqlalchemy", "celery", "kombu", "redis", "rich", "structlog", "torch"}


def test_completion_imports_none_of_the_big_packages() -> None:
    code = "from bitinglip.cli import main\ntry: main()\nexcept SystemExit: pass"
    words = f"import os; os.environ |= {COMPLETION}"
    assert not list_imports(f"{words}\n{code}") & {"pydantic", "sqlalchemy", "celery", "torch"}


@pytest.mark.parametrize("module", MODULES)
def test_no_command_imports_torch(module: str) -> None:
    imports = list_imports(f"import bitinglip.cli.{module}")
    assert not imports & {"torch", "transformers", "flower"}
    assert "celery" not in imports


def test_help_lists_every_command_with_its_summary(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, entry in COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert entry.summary in result.stdout


def test_a_completion_offers_the_commands_that_begin_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMPLETION.items():
        monkeypatch.setenv(name, value)
    assert run().stdout.split() == ["plain,submit", "plain,stats"]


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_has_examples_and_json(path: tuple[str, ...], command: click.Command, run: Run) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert f"bitinglip {' '.join(path)}" in result.stdout.partition("Examples:")[2]
    assert any("--json" in parameter.opts for parameter in command.params) or path == ("worker", "start")


def test_an_unknown_command_is_bad_usage(run: Run) -> None:
    result = run("sumbit")
    assert result.exit_code == 2
    assert "No such command 'sumbit'" in result.stderr


def test_version_is_written(run: Run) -> None:
    assert run("--version").stdout.startswith("bitinglip ")
