"""Flower runs beside the servers, and only who has the password sees it."""

import base64
import stat
import urllib.error
import urllib.request
from pathlib import Path

import pytest

APP = """
import os
from celery import Celery
app = Celery("throwaway", broker=os.environ["CELERY_BROKER_URL"])
"""


def open_page(url: str, credentials: str | None = None) -> str:
    request = urllib.request.Request(url)
    if credentials:
        request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=10) as page:
        return page.read().decode()


def test_flower_asks_for_its_password(start_servers, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "throwaway.py").write_text(APP)
    servers = start_servers()
    url = servers.start_flower(app="throwaway", env={"PYTHONPATH": str(tmp_path)})
    password_file = data_dir / "flower.password"
    password = password_file.read_text()
    assert "Flower" in open_page(url, f"bitinglip:{password}")
    for credentials in (None, "bitinglip:wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            open_page(url, credentials)
        refused.value.close()
    assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
    arguments = Path(f"/proc/{servers.stack.find_pids()['flower']}/cmdline").read_text()
    assert password not in arguments
    assert servers.urls.redis_url not in arguments
