"""What tests of the command share."""

import pytest


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("jaxem.cli.pictures.can_draw", lambda: False)
