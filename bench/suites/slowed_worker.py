"""A measuring process whose every answer comes later by a fixed time: `slowed_worker.py NANOSECONDS`.

For `bench/suites/compare_calibration.py`: it is `tsexport.bench.worker` as it is, but the session that it loads waits
after each call, busy, so that the call takes as much longer.  Nothing of it is in the wheel.
"""

import sys
import time

from tsexport.bench import worker
from tsexport.runtimes import registry
from tsexport.types import Array, Artifact, Closing, Feeds, Session, TensorSpec


class SlowedSession(Closing):
    """A session that answers `delay_ns` later."""

    def __init__(self, session: Session, delay_ns: int) -> None:
        self._session, self._delay_ns = session, delay_ns

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer as the session does, later."""
        answer = self._session.run(feeds)
        until = time.perf_counter_ns() + self._delay_ns
        while time.perf_counter_ns() < until:
            pass
        return answer

    def close(self) -> None:
        self._session.close()


def main() -> None:
    """Serve as the worker does, with slowed sessions."""
    delay_ns, load = int(sys.argv[1]), registry.load

    def load_slowed(artifact: Artifact, runtime: str, threads: int) -> Session:
        return SlowedSession(load(artifact, runtime, threads), delay_ns)

    registry.load = load_slowed  # what the worker imports when it is asked to load
    worker.main()


if __name__ == "__main__":
    main()
