"""Turn the 3-D models into cut-outs: several sides of each, RGBA, tightly cropped.

Each model is rendered in its own process with a time limit: some OBJ files take minutes or crash the renderer, which
must not affect the others. A model whose folder has a `done` file is skipped, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from . import collect, lexicon

RENDERS = collect.WORK / "renders"
SIDES = 10  # azimuths; every other one is seen from higher up
SECONDS_EACH = 90


# People and animals that are also rendered in one plain material: in marble or bronze they are what `statue` looks
# like, in plastic or clay what `figure` looks like.
MANNEQUINS = [
    "kl:male-01-suit",
    "re:male01",
    "re:male03",
    "re:female01",
    "re:female03",
    "re:boyStanding",
    "re:girlStanding",
    "re:sitMale01",
    "re:sitFemale02",
    "sc:mannequinMale",
    "sc:mannequinBrunette",
    "by:horse",
    "zero:deer",
    "by:bulldog",
    "sc:rabbit",
]
STATUE_MATERIALS = {
    "marble": (0.92, 0.90, 0.86),
    "bronze": (0.50, 0.34, 0.16),
    "stone": (0.52, 0.52, 0.50),
}
FIGURE_MATERIALS = {
    "plastic": (0.85, 0.16, 0.14),
    "clay": (0.78, 0.46, 0.30),
    "wood": (0.72, 0.52, 0.30),
    "sky": (0.22, 0.48, 0.86),
}


def views(sides: int = SIDES) -> list[tuple[float, float]]:
    """(azimuth, elevation) in degrees, starting near the front."""
    return [(20 + 360 * i / sides, 8 if i % 2 else 24) for i in range(sides)]


def aim(plotter, azimuth: float, elevation: float, zoom: float = 1.0) -> None:
    """Point the camera at the middle of the scene. Sweet Home models have y up and their front towards +z."""
    bounds = np.array(plotter.bounds).reshape(3, 2)
    center, radius = bounds.mean(1), np.linalg.norm(bounds[:, 1] - bounds[:, 0]) / 2
    a, e = np.radians(azimuth), np.radians(elevation)
    direction = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    plotter.camera.focal_point = center
    plotter.camera.position = center + direction * radius * 4.2 / zoom
    plotter.camera.up = (0, 1, 0)
    plotter.camera.view_angle = 30
    plotter.renderer.ResetCameraClippingRange()


def crop_to_alpha(picture: np.ndarray, longest: int) -> Image.Image | None:
    """Crop the empty border of (height, width, 4); None if almost nothing was drawn."""
    alpha = picture[..., 3] > 8
    if alpha.mean() < 0.01:
        return None
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    cut = Image.fromarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    cut.thumbnail((longest, longest), Image.LANCZOS)
    return cut


def name_materials(model: Path) -> Path:
    """Write a copy with an `m` before materials whose names begin with a digit: VTK's importer cannot read those."""
    text = model.read_text("latin-1")
    if not re.search(r"^usemtl \d", text, re.M):
        return model
    copy = model.with_name(model.stem + "_named.obj")
    if not copy.exists():
        for source, target in (
            (model.with_suffix(".mtl"), copy.with_suffix(".mtl")),
            (model, copy),
        ):
            lines = re.sub(
                r"^(usemtl|newmtl) (?=\d)", r"\1 m", source.read_text("latin-1"), flags=re.M
            )
            part = target.with_suffix(
                f".part{os.getpid()}"
            )  # several workers may write the same copy
            part.write_text(lines, "latin-1")
            os.replace(part, target)
    return copy


def open_plotter(model: Path, size: int, material: tuple[float, float, float] | None = None):
    """An off-screen plotter with the model, lit from the camera's left and above."""
    import pyvista as pv

    plotter = pv.Plotter(off_screen=True, window_size=(size, size), lighting="light kit")
    model = name_materials(model)
    mtl = model.with_suffix(".mtl")
    plotter.import_obj(str(model), str(mtl) if mtl.exists() else None)
    plotter.add_light(pv.Light(light_type="headlight", intensity=0.35))
    for actor in plotter.renderer.GetActors():
        smooth(actor)
        shade = actor.GetProperty()
        shade.SetAmbient(max(shade.GetAmbient(), 0.15))
        if material is not None:
            actor.SetTexture(None)
            actor.GetMapper().ScalarVisibilityOff()
            shade.SetColor(*material)
            shade.SetAmbientColor(*material)
            shade.SetOpacity(1.0)
            shade.SetSpecular(0.3)
    return plotter


def smooth(actor) -> None:
    """Give faceted meshes vertex normals, keeping edges sharper than 50 degrees."""
    import vtk

    mesh = actor.GetMapper().GetInput()
    if mesh is None or mesh.GetPointData().GetNormals() is not None:
        return
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputData(mesh)
    normals.SetFeatureAngle(50)
    normals.Update()
    actor.GetMapper().SetInputData(normals.GetOutput())


def shoot(plotter, azimuth: float, elevation: float, zoom: float = 1.0) -> np.ndarray:
    """One picture (size, size, 4) uint8 with the background transparent."""
    aim(plotter, azimuth, elevation, zoom)
    plotter.render()
    return np.array(plotter.screenshot(return_img=True, transparent_background=True))


def render_model(name: str, out: Path, material: str | None) -> int:
    """All sides of one model (in this process)."""
    materials = STATUE_MATERIALS | FIGURE_MATERIALS
    model = Path(collect.catalog()[name]["path"])
    plotter = open_plotter(model, 384, materials[material] if material else None)
    kept = 0
    for number, (azimuth, elevation) in enumerate(views()):
        cut = crop_to_alpha(shoot(plotter, azimuth, elevation), 192)
        if cut is not None:
            cut.save(out / f"{number}.png")
            kept += 1
    return kept


def folder_of(name: str, material: str | None = None) -> Path:
    return RENDERS / (name.replace(":", "_") + (f"@{material}" if material else ""))


def render_apart(job: tuple[str, str | None]) -> str:
    """Render one model in a process of its own; returns how it went."""
    name, material = job
    out = folder_of(name, material)
    if (out / "done").exists():
        return ""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __spec__.name, "--one", name] + (
        ["--material", material] if material else []
    )
    try:
        subprocess.run(command, timeout=SECONDS_EACH, check=True, capture_output=True)
        verdict = f"{len(list(out.glob('*.png')))} sides"
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        verdict = type(error).__name__
    (out / "done").write_text(verdict)
    return f"{name} {material or ''}: {verdict}"


def jobs() -> list[tuple[str, str | None]]:
    """Every (model, material) that the world needs."""
    models = dict.fromkeys(model for noun in lexicon.nouns() for model in noun.models)
    plain = [(model, None) for model in models]
    materials = list(STATUE_MATERIALS) + list(FIGURE_MATERIALS)
    return plain + [(model, material) for model in MANNEQUINS for material in materials]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="render this model here, e.g. sc:cat")
    parser.add_argument("--material")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.one:
        out = folder_of(arguments.one, arguments.material)
        out.mkdir(parents=True, exist_ok=True)
        render_model(arguments.one, out, arguments.material)
        return
    render_all(arguments.workers)


def render_all(workers: int | None = None) -> None:
    """Every model of the world, several at a time."""
    todo = jobs()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for number, line in enumerate(pool.map(render_apart, todo), 1):
            if line:
                print(f"{number}/{len(todo)} {line}", flush=True)


if __name__ == "__main__":
    main()
