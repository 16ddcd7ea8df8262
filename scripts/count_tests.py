"""Add up the JUnit files that ctest left in the given build folders and print one line of counts.

Where there is no GPU, the tests that need one left a file of their own, which GoogleTest wrote.

The status is 1 if a test failed, if a folder has no results or if a stage of the run failed.
"""

import argparse
import collections
import pathlib
import re
import sys
import xml.etree.ElementTree as ET


def needs_gpu(case: ET.Element) -> bool:
    """By its label or, as an older ctest leaves labels out, by its name."""
    labels = case.find("properties/property[@name='cmake_labels']")
    return "gpu" in (labels.get("value", "").split(";") if labels is not None else case.get("name", ""))


def reason(case: ET.Element) -> str:
    """GoogleTest's or pytest's words for why it skipped the test, else ctest's."""
    words = re.search(r"(?:: Skipped\n|^SKIPPED \[\d+\] .*?: )(.+)", case.findtext("system-out", ""), re.MULTILINE)
    if words:
        return words[1]
    skipped = case.find("skipped")
    return "" if skipped is None else skipped.get("message", "").split("\n")[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--failed-stages", type=int, default=0)
    parser.add_argument("builds", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()

    passed = failed = 0
    skipped, skipped_for_gpu = [], []
    for build in arguments.builds:
        results = build / "results.xml"
        if not results.exists():
            print(f"no test results in {build}")
            continue
        suite = ET.parse(results).getroot()
        for case in suite.iter("testcase"):
            status = case.get("status")
            if status == "fail":
                failed += 1
                print(f"FAILED {build.name}: {case.get('name')}")
            elif status == "run":
                passed += 1
            else:
                (skipped_for_gpu if needs_gpu(case) else skipped).append((build, case))
        of_gpu = build / "gpu_results.xml"
        if of_gpu.exists():
            # GoogleTest's "run" says that a test was not disabled. One that failed has failed its stage.
            cases = [case for case in ET.parse(of_gpu).getroot().iter("testcase") if case.find("failure") is None]
            skipped_for_gpu += [(build, case) for case in cases if case.get("result") == "skipped"]
            passed += sum(case.get("result") == "completed" for case in cases)
    for build, case in skipped:
        print(f"skipped {build.name}: {case.get('name')} {reason(case)}")
    for why, count in collections.Counter(reason(case) for _, case in skipped_for_gpu).items():
        print(f"skipped: {count} tests that need a GPU: {why}")
    missing = sum(not (build / "results.xml").exists() for build in arguments.builds)
    # A stage that failed without a failing test of its own (a build, the linters, a fuzzer) counts as one failure.
    failed = max(failed, arguments.failed_stages, missing)
    print(f"\n{passed} passed, {failed} failed, {len(skipped) + len(skipped_for_gpu)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
