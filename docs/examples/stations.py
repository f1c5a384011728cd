"""Made-up readings: a folder with a file for each of eight weather stations, a temperature in °C a day."""

import math
import random
from pathlib import Path

Path("stations").mkdir(exist_ok=True)
for place in range(8):
    draw, weather, lines = random.Random(place), 0.0, []
    for day in range(1000):
        weather = 0.8 * weather + draw.gauss(0, 2)
        lines.append(f"{10 + place + 9 * math.sin(day / 58) + weather:.1f}")
    Path(f"stations/station-{place}.csv").write_text("\n".join(lines))
