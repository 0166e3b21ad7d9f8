"""What several tests of weights share."""

import pytest

from tests.packages import need


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """hf_hub_download of a folder ORG/NAME/file, as its fetched() lists the calls."""
    need("huggingface_hub")
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    calls = []

    def fetched(repository: str, file: str, revision: str | None = None) -> str:
        calls.append((repository, file, revision))
        if not (tmp_path / repository / file).is_file():
            raise EntryNotFoundError("404")
        return str(tmp_path / repository / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    return tmp_path, calls
