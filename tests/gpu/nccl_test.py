"""Processes with a GPU each, over NCCL and by copy engines: equality, and what one hears when another is lost."""

import glob
import os
import signal
import socket
import subprocess
import sys
import time
import unittest

TESSERA = sys.argv[1]
TIMEOUT_SECONDS = 4
SKIPPED = 77
GPUS = len(glob.glob("/dev/nvidia[0-9]*"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1] - 1  # ranks meet at the port after MASTER_PORT


def start(transport, *arguments, size=2):
    port = free_port()
    ranks = []
    for rank in range(size):
        environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NCCL_NVLS_ENABLE="0")
        command = [
            TESSERA,
            *arguments,
            "--device",
            "cuda",
            "--transport",
            transport,
            "--mask",
            "causal",
            "--dim",
            "128",
        ]
        ranks.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return ranks


class Processes:
    """What holds for each transport."""

    def tearDown(self):
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
            rank.communicate()

    def test_equality(self):
        self.ranks = start(self.transport, "verify", "--distributed", "burst", "--seq", "700", "--heads", "4")
        outputs = [rank.communicate(timeout=60)[0] for rank in self.ranks]
        self.assertEqual([rank.returncode for rank in self.ranks], [0, 0], outputs)
        self.assertIn(f"2 ranks ({self.name})", outputs[0])

    @unittest.skipIf(GPUS < 4, "fewer than four GPUs")
    def test_equality_of_four(self):
        for schedule in ("ring", "burst", "double_ring"):
            flags = ("--seq", "700", "--heads", "8", "--kv-heads", "2", "--ranks-per-node", "2")
            self.ranks = start(self.transport, "verify", "--distributed", schedule, *flags, size=4)
            outputs = [rank.communicate(timeout=60)[0] for rank in self.ranks]
            self.assertEqual([rank.returncode for rank in self.ranks], [0] * 4, outputs)
            self.assertIn(f"4 ranks ({self.name})", outputs[0])

    def lose(self, how):
        """The words of rank 0, and the seconds until it ended, when rank 1 is lost among many passes."""
        self.ranks = start(
            self.transport,
            *("bench", "--distributed", "ring", "--seq", "32K", "--heads", "32", "--min-time", "60"),
            *("--no-baseline", "--timeout", str(TIMEOUT_SECONDS)),
        )
        time.sleep(7)
        self.assertIsNone(self.ranks[0].poll(), "it ended before the other was lost")
        self.ranks[1].send_signal(how)
        begin = time.monotonic()
        output, _ = self.ranks[0].communicate(timeout=60)
        seconds = time.monotonic() - begin
        print(f"{self.transport}, {how.name}: {seconds:.1f} s, {output.strip()}", flush=True)
        self.assertNotEqual(self.ranks[0].returncode, 0)
        return output, seconds

    def test_killed(self):
        output, seconds = self.lose(signal.SIGKILL)
        self.assertIn("rank 1 left before its work was done", output)
        self.assertLess(seconds, TIMEOUT_SECONDS)

    def test_stopped(self):
        output, seconds = self.lose(signal.SIGSTOP)
        self.assertIn(f"rank 1 was silent for {TIMEOUT_SECONDS} s", output)
        self.assertLess(seconds, 3 * TIMEOUT_SECONDS)


class OverNccl(Processes, unittest.TestCase):
    transport = name = "nccl"


class ByCopies(Processes, unittest.TestCase):
    transport = "copy"
    name = "tcp, by the copy engines"


if __name__ == "__main__":
    if GPUS < 2:
        print("skipped: it needs two GPUs")
        sys.exit(SKIPPED)
    unittest.main(argv=sys.argv[:1])
