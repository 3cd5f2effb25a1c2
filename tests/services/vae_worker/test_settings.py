"""Settings of a VAE worker that depend on the machine."""

import pytest

from services.vae_worker import settings as settings_module
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.settings import load


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 2), (8, 4), (48, 24), (256, 64)])
def test_image_files_are_encoded_by_as_many_threads_as_there_are_cores_for(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_module, "usable_cores", lambda: cores)
    assert load(VaeWorkerSettings, []).image_encoders() == threads
    assert load(VaeWorkerSettings, ["--encode-threads", "3"]).image_encoders() == 3
