"""A process that takes one turn: `taking_turns.py ROOT working|measuring|killed NAME`; what it does goes to stdout.

It prints "wait NAME" before, "in NAME" when it has its turn, and "out NAME" before it gives it back, which it does when
its stdin has a line.  `killed` measures, and dies of SIGKILL instead.
"""

import os
import signal
import sys
from pathlib import Path

from tsexport.turns import Turns

root, how, name = sys.argv[1:]


def tell(what: str) -> None:
    print(what, name, flush=True)


turns = Turns(Path(root), say=lambda line: print("say", line, flush=True))
tell("wait")
with turns.working() if how == "working" else turns.measuring(name):
    tell("in")
    sys.stdin.readline()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    tell("out")
