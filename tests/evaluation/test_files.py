import json

import pytest

from maep_lightning.evaluation.files import write_atomically


@pytest.mark.faults
def test_write_atomically__failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, json.dumps([1]).encode())

    def fail(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="make room"):
        write_atomically(path, b"[2]")
    assert path.read_text() == "[1]"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
