"""Draws kernel-schedule.svg: who computes, waits and loads when, in the cuda-sm90 kernel.

    python3 docs/figures/kernel_schedule.py > docs/figures/kernel-schedule.svg

The cycles of the gated form are those of its profile with every block kept (16K, head_dim 128,
docs/kernel-log/27-turns-at-the-products.md); the dense form's period is measured, its parts are not.
"""

from html import escape

LEFT, WIDTH, LANE, BAR, TOP = 190, 780, 26, 18, 54
COLOURS = {
    "product": "#7aa6d8",
    "softmax": "#f2b866",
    "vote": "#e07a6a",
    "wait": "#dddddd",
    "load": "#9ccf9a",
}
MEANING = {
    "product": "tensor cores: QKᵀ, PV",
    "softmax": "exponentials, sums, packing",
    "vote": "maxima and vote",
    "wait": "waits",
    "load": "copy engine",
}

GATED_PERIOD = 2656  # cycles of a stream for a block that is kept
# Who is at what, from the moment at which the scores of a block are there: (what, text, from, to).
GATED_WARPS = [
    ("vote", "vote", 0, 190),
    ("softmax", "exponentials A", 190, 690),
    ("wait", "V", 690, 786),
    ("softmax", "exponentials B", 786, 1286),
    ("wait", "turn", 1286, 1414),
    ("wait", "waits for its products, half by half", 1414, 2656),
]
GATED_TENSOR = [
    ("product", "PV A", 786, 1286),
    ("product", "PV B", 1414, 1780),
    ("product", "QKᵀ A, next", 1780, 2147),
    ("product", "QKᵀ B, next", 2147, 2514),
]
GATED_LOADS = [
    ("load", "V of this block: after the vote", 190, 786),
    ("load", "K, blocks ahead: as a stage is free (producer warp)", 786, 2656),
]

DENSE_PERIOD = 2272  # cycles of a stream for a block: twice the 1,136 of a multiprocessor
DENSE_WARPS = [
    ("product", "PV", 0, 284),
    ("product", "QKᵀ, next", 284, 568),
    ("softmax", "maxima, exponentials of its 64 rows", 568, 2272),
]
DENSE_LOADS = [("load", "K and V: by A's first warp", 60, 568)]


def shifted(bars, by, period):
    """The bars later by so many cycles, those that pass the end of the period cut in two."""
    for what, text, begin, end in bars:
        begin, end = begin + by, end + by
        turns = begin // period * period
        begin, end = begin - turns, end - turns
        if end <= period:
            yield what, text, begin, end
        else:
            longer = period - begin >= end - period
            yield what, text if longer else "", begin, period
            yield what, "" if longer else text, 0, end - period


def panel(title, period, lanes, y):
    """One picture of a period; returns (its elements, the height that follows)."""
    scale = WIDTH / period
    out = [f'<text x="8" y="{y + 14}" class="title">{escape(title)}</text>']
    y += 24
    for label, bars in lanes:
        out.append(f'<text x="8" y="{y + 13}">{escape(label)}</text>')
        out.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y + BAR + 3}" y2="{y + BAR + 3}" '
                   'class="line"/>')
        for what, text, begin, end in bars:
            x, width = LEFT + begin * scale, (end - begin) * scale
            out.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" '
                       f'fill="{COLOURS[what]}" stroke="#fff"/>')
            room = int(width / 6.2)
            shown = text if len(text) <= room else text.split(":")[0].split(",")[0]
            if shown and len(shown) <= room:
                out.append(f'<text x="{x + width / 2:.1f}" y="{y + 13}" class="bar">'
                           f"{escape(shown)}</text>")
        y += LANE
    for step in range(0, period + 1, 500):
        x = LEFT + step * scale
        out.append(f'<text x="{x:.1f}" y="{y + 12}" class="bar">{step:,}</text>')
    out.append(f'<text x="8" y="{y + 12}">cycles</text>')
    return out, y + 34


def main():
    gated = []
    for stream in (0, 1):
        by = stream * GATED_PERIOD // 2
        for label, bars in (("copy engine", GATED_LOADS), ("its warpgroup", GATED_WARPS),
                            ("its products", GATED_TENSOR)):
            gated.append((f"stream {stream}: {label}", list(shifted(bars, by, GATED_PERIOD))))
    dense = []
    for n, (stream, half) in enumerate(((0, "A"), (1, "A"), (0, "B"), (1, "B"))):
        by = n * DENSE_PERIOD // 4
        dense.append((f"stream {stream}: warpgroup {half}",
                      list(shifted(DENSE_WARPS, by, DENSE_PERIOD))))
        if half == "A":
            dense.append((f"stream {stream}: copy engine",
                          list(shifted(DENSE_LOADS, by, DENSE_PERIOD))))

    body, y = panel("Gated, head_dim 128, a block that is kept (of one that is not, only the vote and "
                    "the next QKᵀ remain)", GATED_PERIOD, gated, TOP)
    more, y = panel("Dense, head_dim 128 (schematic: waiting products are served in turn, instruction "
                    "by instruction)", DENSE_PERIOD, dense, y)
    legend, x = [], 8
    for what, text in MEANING.items():
        legend.append(f'<rect x="{x}" y="14" width="14" height="14" fill="{COLOURS[what]}"/>')
        legend.append(f'<text x="{x + 20}" y="26">{escape(text)}</text>')
        x += 40 + 7 * len(text)
    total = LEFT + WIDTH + 20
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {y}" width="{total}" '
          f'height="{y}" role="img">')
    print("<title>Schedule of a block in the Hopper kernel: gated and dense</title>")
    print("<style>text{font:12px sans-serif;fill:#222}.title{font-weight:bold}"
          ".bar{text-anchor:middle;font-size:11px}.line{stroke:#ccc}</style>")
    print(f'<rect width="{total}" height="{y}" fill="#fff"/>')
    print("\n".join(legend + body + more))
    print("</svg>")


if __name__ == "__main__":
    main()
