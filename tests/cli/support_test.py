"""docs/support.md is what the Impls say. Usage: support_test.py TESSERA PAGE"""

import difflib
import json
import pathlib
import subprocess
import sys


def printed(program: str, form: str) -> str:
    command = [program, "info", "--support", form]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=True).stdout


def main() -> int:
    program, page = sys.argv[1:]
    expected = printed(program, "markdown")
    found = pathlib.Path(page).read_text(encoding="utf-8")
    if found != expected:
        sys.stdout.writelines(difflib.unified_diff(found.splitlines(True), expected.splitlines(True), page, "printed"))
        print("run: tessera info --support markdown > docs/support.md")
        return 1
    rows = json.loads(printed(program, "json"))
    answers = [answer for row in rows for impl in row["impls"].values() for answer in impl.values()]
    refused = [answer for answer in answers if not answer["takes"]]
    print(f"{len(rows)} features, {len(answers)} answers, {len(refused)} refusals")
    return 0 if refused and all(answer["reason"] for answer in refused) else 1


if __name__ == "__main__":
    sys.exit(main())
