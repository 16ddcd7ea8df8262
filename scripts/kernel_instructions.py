"""Count the instructions of GPU kernels, and check that those without a score program have not grown.

An instruction of a Hopper GPU has 16 bytes, so the sizes of the code sections of an image say it all. The table
holds, for a release of nvcc, the counts that the plain kernels had: a feature that they do not have may not cost them
an instruction.
A change that is about the plain kernels writes the table anew (--write).
"""

import argparse
import pathlib
import struct
import sys

INSTRUCTION_BYTES = 16
SECTION = struct.Struct("<IIQQQQIIQQ")


def instructions_of(image: bytes) -> dict[str, int]:
    """Of each kernel of an image (an ELF file of 64 bits); none for any other file."""
    if image[:5] != b"\x7fELF\x02":
        return {}
    (table,) = struct.unpack_from("<Q", image, 0x28)
    count, names_index = struct.unpack_from("<HH", image, 0x3C)
    sections = [SECTION.unpack_from(image, table + SECTION.size * i) for i in range(count)]
    names = sections[names_index][4]
    counts = {}
    for section in sections:
        begin = names + section[0]
        name = image[begin : image.index(b"\0", begin)].decode()
        if name.startswith(".text."):
            counts[name.removeprefix(".text.")] = section[5] // INSTRUCTION_BYTES
    return counts


def read_table(path: pathlib.Path) -> dict[tuple[str, str], int]:
    rows = (line.split() for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {(release, name): int(count) for release, name, count in rows}


def write_table(path: pathlib.Path, table: dict[tuple[str, str], int]) -> None:
    lines = [f"{release} {name} {count}\n" for (release, name), count in sorted(table.items())]
    path.write_text("# Release of nvcc, plain kernel, instructions: scripts/kernel_instructions.py\n" + "".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, fromfile_prefix_chars="@")
    parser.add_argument("--table", type=pathlib.Path, required=True)
    parser.add_argument("--nvcc", required=True, help="version of the nvcc that compiled the images, 13.0.88")
    parser.add_argument("--write", action="store_true", help="write the counts to the table instead of checking them")
    parser.add_argument("images", nargs="+", type=pathlib.Path, help="images, or @FILE with one on each line")
    arguments = parser.parse_args()
    release = ".".join(arguments.nvcc.split(".")[:2])
    counts = {}
    for path in arguments.images:
        # Those with a score program have its name behind that of the dtype.
        if path.stem.startswith("sm90_") and path.stem.endswith("float16"):
            counts |= {(release, name): count for name, count in instructions_of(path.read_bytes()).items()}
    table = read_table(arguments.table) if arguments.table.exists() else {}
    if arguments.write:
        write_table(arguments.table, table | counts)
        return 0
    known = counts.keys() & table.keys()
    grown = sorted(key for key in known if counts[key] > table[key])
    for key in grown:
        print(f"{key[1]} has {counts[key]} instructions, {counts[key] - table[key]} more than the table")
    print(f"{len(known)} of {len(counts)} kernels of nvcc {release} are in the table, {len(grown)} have grown")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
