"""An ESRGAN upscaler by spandrel, in the tiles of vodka-bench-sample: `peer_upscale.py write|run FILE SIDE`.

`write` writes a network of 64 features and 23 blocks with random weights; `run` prints the seconds that a drawn picture takes. With torch
2.11.0 and spandrel 0.4.2.
"""

import sys
import time

import numpy as np
import torch
from spandrel import ModelLoader
from spandrel.architectures.ESRGAN import ESRGAN

TILE, OVERLAP = 192, 8


def starts(side):
    if side <= TILE:
        return [0]
    count = -(-(side - OVERLAP) // (TILE - OVERLAP))
    return [i * (side - TILE) // (count - 1) for i in range(count)]


def upscale(model, picture):
    height, width, _ = picture.shape
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    result = np.zeros((4 * height, 4 * width, 3), np.uint8)
    for y in starts(height):
        for x in starts(width):
            tile = pixels[:, :, y : y + TILE, x : x + TILE].float() / 255
            tile = (model(tile)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).to(torch.uint8).numpy()
            result[4 * y : 4 * y + tile.shape[0], 4 * x : 4 * x + tile.shape[1]] = tile
    return result


def main():
    what, file, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.manual_seed(0)
    if what == "write":
        torch.save(ESRGAN(num_filters=64, num_blocks=23, scale=4).state_dict(), file)
        return
    model = ModelLoader().load_from_file(file).model.eval()
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    picture = np.stack([x % 256, y % 256, x * y % 256], 2).astype(np.uint8)
    with torch.inference_mode():
        upscale(model, picture[:32, :32])
        start = time.perf_counter()
        upscale(model, picture)
    print(time.perf_counter() - start)


main()
