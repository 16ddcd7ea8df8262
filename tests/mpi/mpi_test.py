"""Ranks as processes: equality with one device, messages, and what the others hear of a rank that is lost."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import unittest

MPIRUN, PROGRAM = sys.argv[1:3]
ENVIRONMENT = dict(
    os.environ,
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    OMPI_MCA_rmaps_base_oversubscribe="1",
    # Survivors of a lost rank are to speak for themselves.
    OMPI_MCA_orte_enable_recovery="1",
    OMPI_MCA_orte_abort_on_non_zero_status="0",
    OMPI_MCA_mpi_yield_when_idle="1",
    OMP_NUM_THREADS="1",
)


def mpirun(ranks, *arguments):
    return subprocess.Popen(
        [MPIRUN, "-n", str(ranks), PROGRAM, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class Ranks(unittest.TestCase):
    def succeeds(self, ranks, *arguments):
        job = mpirun(ranks, *arguments)
        try:
            output, _ = job.communicate(timeout=60)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
        self.assertEqual(job.returncode, 0, output)
        self.assertEqual(output.count(": ok"), ranks, output)

    def test_equality(self):
        self.succeeds(3, "equality")

    def test_small_and_large_messages(self):
        self.succeeds(2, "messages", "3")
        self.succeeds(3, "messages", "3000000")

    def test_one_rank(self):
        self.succeeds(1, "equality")


class LostRanks(unittest.TestCase):
    """Rank 1 of 3 is lost in the eleventh pass."""

    def survivors_say(self, kind, words, ranks=("0", "2")):
        start = time.monotonic()
        job = mpirun(3, "fault", kind)
        lines = {}
        output = ""
        # A rank that is stopped, and so mpirun, does not end by itself.
        watchdog = threading.Timer(25, os.killpg, (job.pid, signal.SIGKILL))
        watchdog.start()
        try:
            for line in job.stdout:
                output += line
                found = re.match(r"rank (\d): (.*) after [\d.]+ s", line)
                if found:
                    lines[found[1]] = found[2]
                if set(ranks) <= set(lines):
                    break
        finally:
            watchdog.cancel()
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            job.stdout.close()
        self.assertLess(time.monotonic() - start, 30, output)
        for rank in ranks:
            self.assertIn(rank, lines, output)
            self.assertRegex(lines[rank], r"^rank 1 .*" + words, output)

    def test_killed(self):
        self.survivors_say("kill", "silent for 4 s")

    def test_stopped(self):
        self.survivors_say("stop", "silent for 4 s")

    def test_alive_but_busy(self):
        self.survivors_say("sleep", "silent for 4 s", ("0", "1", "2"))

    def test_leaves(self):
        self.survivors_say("leave", "left before its work was done")

    def test_wrong_shape(self):
        self.survivors_say("shape", "failed: k: float32")

    def test_another_plan(self):
        self.survivors_say("plan", "plans something else", ("0", "1", "2"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
