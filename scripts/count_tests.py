"""Add up the JUnit files that ctest left in the given build folders and print one line of counts.

The status is 1 if a test failed, if a folder has no results or if a stage of the run failed.
"""

import argparse
import pathlib
import sys
import xml.etree.ElementTree as ET


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--failed-stages", type=int, default=0)
    parser.add_argument("builds", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()

    passed = failed = skipped = 0
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
                skipped += 1
                reason = case.find("skipped")
                print(f"skipped {build.name}: {case.get('name')} {'' if reason is None else reason.get('message', '')}")
    missing = sum(not (build / "results.xml").exists() for build in arguments.builds)
    # A stage that failed without a failing test of its own (a build, the linters, a fuzzer) counts as one failure.
    failed = max(failed, arguments.failed_stages, missing)
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
