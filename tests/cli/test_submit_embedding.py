"""`bitinglip submit embedding`: what it records."""

from bitinglip.client import Client
from tests.cli.conftest import Run


def test_texts_and_options_reach_the_record(run: Run, client: Client) -> None:
    options = ("--dimensions", "8", "--no-normalize", "--title", "T", "--agent", "bot")
    result = run("submit", "embedding", "one", "-", *options, stdin="two\nlines\n")

    task = client.get(result.stdout.strip())
    assert (task.type, task.model, task.title, task.agent_id) == ("embedding", "demo", "T", "bot")
    assert task.payload == {"input": ["one", "two\nlines"], "dimensions": 8, "normalize": False}


def test_only_what_is_said_is_recorded(run: Run, client: Client) -> None:
    task = client.get(run("submit", "embedding", "one").stdout.strip())
    assert task.payload == {"input": ["one"]}


def test_no_text_is_refused(run: Run) -> None:
    result = run("submit", "embedding")
    assert result.exit_code == 2
    assert "TEXTS" in result.stderr
