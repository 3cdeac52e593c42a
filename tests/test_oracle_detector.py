"""The detector's losses and forward pass are the same mathematics as PyTorch's, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import tree
from functrain.models.detector import FCOS
from functrain.tasks.detection import Detection

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick", "float64")]

LOSSES = 1e-12
FORWARD = 1e-11  # relative to the largest of the array, for gradients of all gradients


def focal_loss(x, target, alpha, gamma):
    """Lin et al. 2017, eq. 5."""
    p = torch.sigmoid(x)
    weight = alpha * target + (1 - alpha) * (1 - target)
    p_t = torch.where(target == 1, p, 1 - p)
    return -weight * (1 - p_t) ** gamma * torch.where(target == 1, F.logsigmoid(x), F.logsigmoid(-x))


def giou(a, b):
    """Rezatofighi et al. 2019, algorithm 1, of boxes [n, 4] that are not empty."""
    size = [(c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b)]
    both = torch.clamp(torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2]), min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    union = size[0] + size[1] - both
    return both / union - (hull - union) / hull


def assigned(points, boxes, labels, ignored, radius):
    """The box of each point or -1, and whether it counts, box by box from the largest to the smallest."""
    centres, strides, ranges = (torch.tensor(part, dtype=torch.float64) for part in points)
    matched, uncertain = torch.full((len(centres),), -1), torch.zeros(len(centres), dtype=torch.bool)
    for k in sorted(range(len(boxes)), key=lambda k: -float((boxes[k, 2:] - boxes[k, :2]).prod())):
        sides = torch.cat([centres - boxes[k, :2], boxes[k, 2:] - centres], 1)
        inside = (sides > 0).all(1)
        if labels[k] < 0:
            continue
        if ignored[k]:
            uncertain |= inside
            continue
        far = sides.max(1).values
        near = ((centres - (boxes[k, :2] + boxes[k, 2:]) / 2).abs() < radius * strides[:, None]).all(1)
        matched[inside & near & (far >= ranges[:, 0]) & (far <= ranges[:, 1])] = k
    return matched, (matched >= 0) | ~uncertain


@pytest.mark.parametrize("quality", ["centre", "iou"])
def test_losses(quality):
    """The three losses and their gradients by every output, image by image, with masks and weights."""
    model = FCOS(inputs=(33, 50, 3), outputs=4, depths=(1, 1), strides=(4, 8), bounds=(11,))
    task = Detection(quality=quality, alpha=0.3, gamma=1.7, radius=1.2, model=model)
    n, m, points = 5, 7, model.points
    rng = np.random.default_rng(0)
    low = rng.uniform(0, [40, 25], (n, m, 2))
    batch = {
        "boxes": np.concatenate([low, low + rng.uniform(3, 30, (n, m, 2))], -1),
        "labels": rng.integers(-1, 4, (n, m)),
        "ignored": rng.random((n, m)) < 0.2,
        "mask": np.array([1.0, 1.0, 0.0, 1.0, 1.0]),
        "weight": np.array([1.0, 0.5, 1.0, 2.0, 1.0]),
    }
    batch["labels"][4] = -1
    outputs = {
        "classes": draw(1, n, len(points.centres), 4),
        "distances": np.exp(draw(2, n, len(points.centres), 4)) * points.strides[:, None],
        "quality": draw(3, n, len(points.centres)),
    }
    theirs = {name: torch.tensor(x, requires_grad=True) for name, x in outputs.items()}
    centres = torch.tensor(points.centres, dtype=torch.float64)
    total = dict.fromkeys(("class_loss", "box_loss", "quality_loss"), 0.0)
    count, positives = dict(total), 0
    for i in range(n):
        weight = batch["mask"][i] * batch["weight"][i]
        boxes, labels = torch.tensor(batch["boxes"][i]), torch.tensor(batch["labels"][i])
        matched, counted = assigned(points, boxes, labels, batch["ignored"][i], 1.2)
        at = torch.nonzero(matched >= 0)[:, 0]
        positives += len(at)
        hot = torch.zeros(len(matched), 4, dtype=torch.float64)
        hot[at, labels[matched[at]]] = 1
        total["class_loss"] += weight * focal_loss(theirs["classes"][i], hot, 0.3, 1.7)[counted].sum()
        count["class_loss"] += weight * max(len(at), 1)
        true, d = boxes[matched[at]], theirs["distances"][i][at]
        left, up, right, down = torch.cat([centres[at] - true[:, :2], true[:, 2:] - centres[at]], 1).T
        centre = torch.sqrt(
            torch.minimum(left, right) / torch.maximum(left, right) * torch.minimum(up, down) / torch.maximum(up, down)
        )
        found = torch.cat([centres[at] - d[:, :2], centres[at] + d[:, 2:]], 1)
        overlap = giou(found, true)
        total["box_loss"] += weight * (centre * (1 - overlap)).sum()
        count["box_loss"] += weight * centre.sum()
        size = [(b[:, 2:] - b[:, :2]).prod(1) for b in (found, true)]
        both = torch.clamp(torch.minimum(found[:, 2:], true[:, 2:]) - torch.maximum(found[:, :2], true[:, :2]), min=0)
        both = both.prod(1)
        target = centre if quality == "centre" else (both / (size[0] + size[1] - both)).detach()
        bce = F.binary_cross_entropy_with_logits(theirs["quality"][i][at], target, reduction="sum")
        total["quality_loss"] += weight * bce
        count["quality_loss"] += weight * len(at)
    assert positives > 40
    sum(total[name] / count[name] for name in total).backward()

    def ours(outputs):
        means, _ = task.loss(outputs, batch, train=True)
        return sum(mean.total / mean.count for mean in means.values()), means

    gradients, means = jax.jit(jax.grad(ours, has_aux=True))(outputs)
    for name in total:
        agree(means[name].total, total[name], LOSSES)
        agree(means[name].count, torch.as_tensor(count[name], dtype=torch.float64), LOSSES)
    for name in outputs:
        agree(gradients[name], theirs[name].grad, LOSSES)


def turned(p):
    """A kernel [h, w, in, out] as torch's [out, in, h, w]; all else as it is."""
    return np.ascontiguousarray(np.transpose(p, (3, 2, 0, 1))) if p.ndim == 4 else p


def norm(p, state, name, x, groups, train):
    """Group or batch norm by torch; batch norm where there are statistics."""
    scale, bias = p[f"{name}/scale"], p[f"{name}/bias"]
    key = name.split("/")[1]
    if key in state:
        mean, var = (torch.tensor(np.asarray(state[key][k])) for k in ("mean", "var"))
        return F.batch_norm(x, mean, var, scale, bias, training=train)
    return F.group_norm(x, groups, scale, bias)


def by_torch(p, state, x, *, depths, strides, groups, convolutions, train):
    """FCOS written with F.conv2d, F.group_norm, F.interpolate."""

    def affine(name, x, **more):
        return F.conv2d(x, p[f"{name}/kernel"], p.get(f"{name}/bias"), **more)

    def unit(name, x, **more):
        name = f"backbone/{name}"
        return norm(p, state, f"{name}/norm", affine(f"{name}/conv", x, **more), groups, train)

    h = F.relu(unit("stem", x.permute(0, 3, 1, 2), stride=2, padding=1))
    stages = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            name, stride = f"stage{i}_block{j}", 2 if j == 0 else 1
            branch = unit(f"{name}_2", F.relu(unit(f"{name}_1", h, stride=stride, padding=1)), padding=1)
            h = F.relu(branch + (unit(f"{name}_skip", h, stride=2) if j == 0 else h))
        stages.append(h)
    used = [stage for i, stage in enumerate(stages) if 4 * 2**i in strides]
    sums = [affine(f"pyramid/lateral{i}", stage) for i, stage in enumerate(used)]
    for i in reversed(range(len(sums) - 1)):
        sums[i] = sums[i] + F.interpolate(sums[i + 1], scale_factor=2)[:, :, : sums[i].shape[2], : sums[i].shape[3]]
    levels = [affine(f"pyramid/output{i}", s, padding=1) for i, s in enumerate(sums)]
    for i in range(len(used), len(strides)):
        before = levels[-1] if i == len(used) else F.relu(levels[-1])
        levels.append(affine(f"pyramid/down{i}", before, stride=2, padding=1))

    outputs = {"classes": [], "distances": [], "quality": []}
    for i, level in enumerate(levels):
        towers = {}
        for name in ("class", "box"):
            h = level
            for j in range(convolutions):
                at = f"heads/{name}{j}"
                h = F.group_norm(
                    affine(f"{at}/conv", h, padding=1), groups, p[f"{at}/norm/scale"], p[f"{at}/norm/bias"]
                )
                h = F.relu(h)
            towers[name] = h
        found = {
            name: affine(f"heads/{name}", towers[tower], padding=1).permute(0, 2, 3, 1).flatten(1, 2)
            for name, tower in (("classes", "class"), ("distances", "box"), ("quality", "box"))
        }
        outputs["classes"].append(found["classes"])
        outputs["distances"].append(torch.exp(p["heads/scales"][i] * found["distances"]) * strides[i])
        outputs["quality"].append(found["quality"][..., 0])
    return {name: torch.cat(parts, 1) for name, parts in outputs.items()}


@pytest.mark.parametrize(
    ("kind", "train", "strides", "depths", "size"),
    [
        ("group", True, (4, 8, 16, 32), (2, 1, 1), (37, 51)),
        ("batch", True, (8, 16), (1, 2), (18, 27)),
        ("batch", False, (4,), (1,), (16, 9)),
    ],
)
def test_forward(kind, train, strides, depths, size):
    """Outputs, and gradients by every parameter, of images of odd sizes; levels beyond the backbone's last stage."""
    shape = {"width": 4, "features": 6, "groups": 2, "convolutions": 2 if kind == "group" else 1}
    model = FCOS(inputs=(*size, 3), outputs=3, depths=depths, strides=strides, norm=kind, **shape)
    shapes, held = jax.eval_shape(model.init, jax.random.key(0))
    paths = {path: i for i, path in enumerate(tree.by_path(shapes))}
    params = tree.map_by_path(lambda path, p: 0.4 * draw(paths[path], *p.shape) + (p.ndim == 1), shapes)
    state = {
        name: {"mean": 0.1 * draw(i, *old["mean"].shape), "var": 1 + draw(99 + i, *old["var"].shape) ** 2}
        for i, (name, old) in enumerate(held.items())
    }
    x = draw(7, 2, *size, 3)
    theirs = {path: torch.tensor(turned(p), requires_grad=True) for path, p in tree.by_path(params).items()}
    expected = by_torch(
        theirs, state, torch.tensor(x), depths=depths, strides=strides, train=train, groups=2,
        convolutions=shape["convolutions"],
    )  # fmt: skip
    # By their sizes, so that the exponentials of the distances do not hide the other outputs.
    weights = {
        name: draw(i, *out.shape) / max(1.0, float(out.detach().abs().max()))
        for i, (name, out) in enumerate(expected.items())
    }
    sum((out * torch.tensor(weights[name])).sum() for name, out in expected.items()).backward()

    def ours(params):
        outputs, _ = model.apply(params, state, jnp.asarray(x), train=train)
        return sum((out * weights[name]).sum() for name, out in outputs.items()), outputs

    gradients, outputs = jax.jit(jax.grad(ours, has_aux=True))(params)
    for name, out in expected.items():
        agree(outputs[name], out, FORWARD)
    largest = max(float(p.grad.abs().max()) for p in theirs.values())
    for path, gradient in tree.by_path(gradients).items():
        agree(turned(gradient), theirs[path].grad, FORWARD, largest)
