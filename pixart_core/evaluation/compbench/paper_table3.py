"""Table 3 of the paper, as reported: T2I-CompBench."""

from pixart_core.recipe.compbench import Category

COLUMNS: tuple[Category, ...] = ("color", "shape", "texture", "spatial", "non_spatial", "complex")
# With 300 prompts a category the worst-case 95 % half-width is 0.057.
ROWS: dict[str, tuple[float, ...]] = {
    "Stable v1.4": (0.3765, 0.3576, 0.4156, 0.1246, 0.3079, 0.3080),
    "Stable v2": (0.5065, 0.4221, 0.4922, 0.1342, 0.3096, 0.3386),
    "Composable v2": (0.4063, 0.3299, 0.3645, 0.0800, 0.2980, 0.2898),
    "Structured v2": (0.4990, 0.4218, 0.4900, 0.1386, 0.3111, 0.3355),
    "Attn-Exct v2": (0.6400, 0.4517, 0.5963, 0.1455, 0.3109, 0.3401),
    "GORS": (0.6603, 0.4785, 0.6287, 0.1815, 0.3193, 0.3328),
    "Dalle-2": (0.5267, 0.4747, 0.5804, 0.1283, 0.3078, 0.2967),
    "SDXL": (0.5879, 0.4687, 0.5299, 0.2133, 0.3119, 0.3237),
    "PixArt-α": (0.6690, 0.4927, 0.6477, 0.2064, 0.3197, 0.3433),
}
NOTE = (
    "As reported; PixArt-α's row comes from an unreleased fine-tune. With 300 prompts a category, "
    "differences below about 0.06 may be chance. None of these is a threshold to pass."
)
