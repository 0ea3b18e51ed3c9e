r"""Machine code beside what a profile says of it: where the time of a warp goes.

One line an instruction: cycles of a warp each time it is executed, samples, executions, the stall
count that the compiler put into it, the barriers that it sets (w: when its result is there, r: when
its operands are read) and waits for (a mask), the instruction, and the two commonest reasons why
warps stood there. The sum of the cycles over a loop is what one round of it takes a warp; what an
instruction waits for shows at the next that needs it.

  ncu --clock-control none -k regex:attention_kernel --section SourceCounters -o report \
      python3 bench/cuda/profile_forms.py 16384 128
  ncu -i report.ncu-rep --page source --csv > source.csv
  cuobjdump -sass <object file of the kernel> > code.sass
  python3 bench/cuda/annotate_profile.py source.csv code.sass --kernel 1 --at-least 1000000
"""

import argparse
import csv
import itertools
import re
import sys


def read_profile(path, kernel):
    """Rows of the source page of the kernel of this index, in the order of the report."""
    with open(path) as file:
        lines = file.read().split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith('"Kernel Name"')]
    if not 0 <= kernel < len(starts):
        sys.exit(f"--kernel is {kernel}; {path} has {len(starts)}, counted from 0")
    end = [*starts, len(lines)][kernel + 1]
    return list(csv.DictReader(lines[starts[kernel] + 1 : end]))


def read_code(path):
    """(instruction, control) of an object file with one kernel.

    sm_70 to sm_90 have the control fields in bits 41 to 57 of an instruction's second word.
    """
    code = []
    with open(path) as file:
        lines = file.read().split("\n")
    for line, following in itertools.pairwise(lines):
        match = re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/", line)
        if not match:
            continue
        bits = int(re.search(r"0x([0-9a-f]{16})", following).group(1), 16)
        stall, write, read, wait = (
            bits >> shift & mask for shift, mask in ((41, 15), (46, 7), (49, 7), (52, 63))
        )
        name = lambda barrier: "-" if barrier == 7 else str(barrier)  # noqa: E731
        code.append((match.group(1), f"st{stall:2d} w{name(write)} r{name(read)} m{wait:06b}"))
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("profile", help="ncu's source page as CSV")
    parser.add_argument("code", help="cuobjdump -sass of the object file of the kernel")
    parser.add_argument("--kernel", type=int, default=0, help="which of the profile, from 0")
    parser.add_argument("--at-least", type=int, default=0, help="executions of a line shown")
    args = parser.parse_args()
    rows, code = read_profile(args.profile, args.kernel), read_code(args.code)
    count = lambda row, column: int(row[column] or 0)  # noqa: E731
    same = len(code) >= len(rows) and all(
        instruction.split()[0] in row["Source"]
        for row, (instruction, _) in zip(rows, code, strict=False)
    )
    if not same:
        sys.exit(
            f"{args.code} ({len(code)} instructions) is not the code of kernel {args.kernel} "
            f"of {args.profile} ({len(rows)})"
        )
    reasons = [c for c in rows[0] if c.startswith("stall_") and "Not" not in c]
    # A warp that issues is sampled as selected, and an issue takes one cycle.
    issued = sum(count(row, "Instructions Executed") for row in rows)
    scale = issued / max(1, sum(count(row, "stall_selected") for row in rows))
    total = 0.0
    for index, (row, (instruction, control)) in enumerate(zip(rows, code, strict=False)):
        executed, samples = count(row, "Instructions Executed"), count(row, "# Samples")
        if executed < max(1, args.at_least):
            continue
        cycles = samples * scale / executed
        total += cycles
        top = sorted(((count(row, c), c[6:]) for c in reasons), reverse=True)[:2]
        why = ", ".join(f"{reason} {n}" for n, reason in top if n)
        print(
            f"{index:5d} {cycles:7.1f} {samples:7d} {executed:9d} {control}  "
            f"{instruction[:64]:64s} {why}"
        )
    print(f"cycles of a warp, each line once: {total:.0f}")


if __name__ == "__main__":
    main()
