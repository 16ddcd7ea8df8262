"""Bad flags: status 2 and one line with the flag, its value and what is accepted. Usage: flags_test.py TESSERA"""

import unittest

from program import ProgramTest


class BadFlags(ProgramTest):
    def test_one_line_and_status_2(self):
        cases = {
            (): ["no command", "bench", "verify"],
            ("benhc",): ["unknown command 'benhc'", "did you mean bench"],
            ("conquer",): ["unknown command 'conquer'", "info, bench, verify, run, explain"],
            ("--bogus",): ["unknown flag '--bogus'"],
            ("bench", "--sqes", "5"): ["tessera bench", "unknown flag '--sqes'", "--seqs"],
            ("verify", "stray"): ["unexpected argument 'stray'"],
            ("verify", "--heads"): ["--heads", "no value"],
            ("verify", "--dtype", "float8"): ["--dtype", "'float8'", "float32, bfloat16, float16"],
            ("bench", "--seqs", "512,x"): ["--seqs", "'512,x'", "integers of 1 or more"],
            ("bench", "--impls", "flash,magic"): ["--impls", "'flash,magic'", "reference"],
            ("explain", "--isa", "mmx"): ["--isa", "'mmx'"],
            ("verify", "--device", "gpu"): ["--device", "'gpu'", "cpu, cuda, cuda:0"],
            ("verify", "--space", "h100"): ["--space", "'h100'", "all, sm90"],
            ("verify", "--distributed", "ring", "--transport", "pigeon"): [
                "--transport",
                "'pigeon'",
                "nccl, copy, host",
            ],
            ("explain", "--impl", "magic"): ["--impl", "'magic'", "flash, reference, standard"],
            ("verify", "--heads", "6", "--kv-heads", "4"): ["--kv-heads", "4", "divisors"],
            ("verify", "--lengths", "3", "--seq", "3"): ["--lengths", "--seq"],
            ("bench", "--seqs", "16", "--seq", "16"): ["--seqs"],
            ("bench", "--plot", "x.pdf"): ["--plot", "x.pdf", ".png or .svg", ".gp"],
            ("verify", "--mask", "causal,butterfyl"): ["--mask", "'causal,butterfyl'", "butterfly[:DISTANCE]"],
            ("verify", "--seq", "40", "--blocks", "x./.x"): ["--blocks", "x./.x", "1 rows of 1 blocks"],
            ("verify", "--block-size", "20"): ["--block-size", "'20'", "multiples of 16"],
            ("bench", "--densities", "0.5,1.5"): ["--densities", "'0.5,1.5'", "0 to 1"],
            ("bench", "--densities", "0.5", "--seqs", "64"): ["--seqs", "--densities"],
            ("bench", "--densities", "0.5", "--mask", "local:1"): ["--densities", "block mask"],
            ("verify", "--random", "3", "--seq", "5"): ["--seq", "absent beside --random"],
            ("verify", "--first", "3"): ["--first", "with --random"],
            ("verify", "--ranks", "2"): ["--ranks", "with --distributed"],
            ("verify", "--distributed", "ring", "--transport", "host"): ["--transport", "with --device cuda"],
            ("verify", "--lengths", "3", "--batch", "2"): ["--lengths", "--batch"],
            ("verify", "--magnitude", "-1"): ["--magnitude", "'-1'", "0 or more"],
            ("bench", "--distributed", "ring", "--impls", "flash"): ["--impls", "absent beside --distributed"],
            ("bench", "--impls", "flash,flash"): ["--impls", "'flash,flash'", "each once"],
            ("bench", "--min-time", "-1"): ["--min-time", "'-1'", "0 or more"],
            ("bench", "--json", "x.gp", "--plot", "x.gp"): ["--plot", "x.gp", "--json"],
            ("explain", "--scale", "1e300"): ["--scale", "'1e300'", "float32"],
            ("explain", "--mask", "local:1.5"): ["--mask", "'local:1.5'", "an integer"],
            ("explain", "--mask", "random:0.5:-1"): ["--mask", "'random:0.5:-1'", "-1", "2^64 - 1"],
            ("explain", "--mask", "random:2"): ["--mask", "'random:2'", "density: 2", "0 to 1"],
            ("explain", "--mask", "butterfly", "--seq", "1000000000"): ["--mask", "'butterfly'", "2^32 blocks"],
            ("explain", "--mask", "causal", "--alignment", "9223372036854775807"): ["--alignment", "2^60"],
            ("explain", "--window", "0,9223372036854775806"): ["--window", "9223372036854775806", "2^60"],
            ("plan", "--rate", "1", "--latency", "-1"): ["--latency", "'-1'", "0 or more"],
            ("warm",): ["tessera warm", "--problems"],
            ("run",): ["tessera run", "IN"],
            ("run", "in.safetensors"): ["tessera run", "--out"],
            ("run", "a", "--out", "b", "--mask", "diagonal"): ["--mask", "'diagonal'", "causal"],
        }
        for arguments, parts in cases.items():
            with self.subTest(arguments=arguments):
                self.assertEqual(self.fails(2, parts, *arguments).stdout, "")

    def test_help_and_version(self):
        self.assertRegex(self.succeeds("--version"), r"\Atessera \d+\.\d+\.\d+\n\Z")
        for command in ("info", "bench", "verify", "run", "plan", "explain", "warm"):
            self.assertIn(command, self.succeeds("--help"))
            self.assertIn("tessera " + command, self.succeeds(command, "--help"))


if __name__ == "__main__":
    unittest.main()
