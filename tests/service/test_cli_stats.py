"""kvstore stats against a daemon."""

import json
from contextlib import ExitStack

from service_helpers import config_for, start
from store_helpers import make_spec, put_chain

from kvstore.cli import main


def test_the_numbers_of_a_daemon(tmp_path, capsys):
    with ExitStack() as stack:
        inner, _ = start(config_for(tmp_path), stack)
        put_chain(inner.namespace(make_spec()), 3)
        target = f"unix:{tmp_path / 's'}"
        assert main(["stats", target, "--json"]) == 0
        stats = json.loads(capsys.readouterr().out)
        assert stats["index"]["entries"] == 3 and stats["service"]["calls"] >= 1
        assert main(["stats", target]) == 0
        text = capsys.readouterr().out
        assert "host.used_nbytes" in text and "192 KiB" in text and "tiny.blocks" in text
    assert main(["stats", target]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
