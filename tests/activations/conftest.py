from tests.runs.conftest import kill_before

__all__ = ["kill_before"]
