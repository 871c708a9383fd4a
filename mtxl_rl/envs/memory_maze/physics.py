r"""The rolling ball: what MuJoCo computes for the original's walker, and nothing else.

The walker has five degrees of freedom: x, y, z, the heading and the roll of its ball. It touches
the floor and the sides of wall boxes with one sphere. This module states the equations of MuJoCo's
documentation ("Computation": soft contacts, elliptic friction cones, implicit damping, noslip) for
that body, and solves them until nothing moves any more.

**Coordinates.** Everything is computed in the walker's frame: a = (forward, left, up, heading,
roll). There the mass matrix is constant, kinetic energy = |W a|^2 / 2 with a fixed matrix W, and
u = W a are *whitened* accelerations: the mass matrix is the identity. `_whiten_row` turns the
Jacobian row of a contact, J a, into the row J W^-1, so that all products are plain dot products.

**A contact** has four rows: the normal and three of friction, which are two directions and the
torsion about the normal. The torsion is scaled by its coefficient, so that the friction cone is a
circular one. The three friction rows may be turned freely, and are turned so that they are
orthogonal; that leaves problems with diagonal matrices (`_friction_in_ball`).

**A substep** minimises, for contacts i with rows J_i, stiffness d_i and reference r_i,

    |u - free|^2 / 2 + sum_i d_i / 2 |P(r_i - J_i u)|^2,   P the projection onto the friction cone,

whose force is d_i P(r_i - J_i u). Then noslip keeps the normal forces and computes friction again
without softness. On the floor alone, the problem has one unknown (`_add_floor_forces`). With walls
it has five, and Newton's method solves it (`_solve_contacts`).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import bare_kernel, inlined, kernel
from mtxl_rl.envs.memory_maze.spec import BALL_RADIUS, CELL, SUBSTEP_SECONDS, TARGET_RADIUS

# The model, in kg, m, s. The camera's kilogram sits 0.15 m ahead of the ball.
_MASS = 22.00001
_CAMERA_MOMENT = 0.15
_HEADING_INERTIA = 1.18533229
_ROLL_INERTIA = 0.016
_GRAVITY = 9.81
_HEADING_DAMPING, _ROLL_DAMPING = 20.0, 5.0
_HEADING_GEAR, _ROLL_GEAR = 30.0, 50.0
_TORSION = 0.02  # friction coefficient; those of sliding are 1
# solref 0.02 and solimp (0.9, 0.95, 0.001): a critically damped spring of 20 ms, and how much of it
# counts. The inverse weight of the ball's body turns that into a stiffness.
_SPRING = 1 / (0.95 * 0.95 * 0.02 * 0.02)
_DAMPER = 2 / (0.95 * 0.02)
_INVERSE_WEIGHT = 0.045467609087
_NUM_NOSLIP = 5
_MAX_CONTACTS = 5  # the floor, and the walls that a ball of 0.4 m meets between cells of 2 m

# W and its inverse, and the inverse mass matrix with the damping taken implicitly.
_SQRT_MASS = math.sqrt(_MASS)
_LEVER = _CAMERA_MOMENT / _MASS
_SQRT_HEADING = math.sqrt(_HEADING_INERTIA - _CAMERA_MOMENT * _LEVER)
_SQRT_ROLL = math.sqrt(_ROLL_INERTIA)
_DAMPED_HEADING = _HEADING_INERTIA + SUBSTEP_SECONDS * _HEADING_DAMPING
_DAMPED_ROLL = _ROLL_INERTIA + SUBSTEP_SECONDS * _ROLL_DAMPING
_DAMPED_DETERMINANT = _MASS * _DAMPED_HEADING - _CAMERA_MOMENT**2

# The floor's friction rows "left" and "torsion", turned until they are orthogonal.
_FLOOR_LEFT = np.array([0.0, 1 / _SQRT_MASS, 0.0, -_LEVER / _SQRT_HEADING, 0.0])
_FLOOR_TORSION = np.array([0.0, 0.0, 0.0, _TORSION / _SQRT_HEADING, 0.0])
_FLOOR_ANGLE = 0.5 * math.atan2(
    2 * float(_FLOOR_LEFT @ _FLOOR_TORSION),
    float(_FLOOR_LEFT @ _FLOOR_LEFT - _FLOOR_TORSION @ _FLOOR_TORSION),
)
_FLOOR_COS, _FLOOR_SIN = math.cos(_FLOOR_ANGLE), math.sin(_FLOOR_ANGLE)
_FLOOR_A = float(np.sum((_FLOOR_COS * _FLOOR_LEFT + _FLOOR_SIN * _FLOOR_TORSION) ** 2))
_FLOOR_B = float(np.sum((_FLOOR_COS * _FLOOR_TORSION - _FLOOR_SIN * _FLOOR_LEFT) ** 2))


class Scratch(NamedTuple):
    """Working memory of `move_walker`."""

    rows: NDArray[np.float64]
    """[contacts, 4, 5] whitened Jacobians."""
    fours: NDArray[np.float64]
    """[4, contacts, 4] what belongs to these rows."""
    vectors: NDArray[np.float64]
    """[16, 5]."""
    walls: NDArray[np.float64]
    """[contacts - 1, 3]; see `_find_walls`."""


@kernel
def new_scratch() -> Scratch:
    """Working memory of any content."""
    return Scratch(
        np.empty((_MAX_CONTACTS, 4, 5)),
        np.empty((4, _MAX_CONTACTS, 4)),
        np.empty((16, 5)),
        np.empty((_MAX_CONTACTS - 1, 3)),
    )


@inlined
def _impedance(distance: float) -> float:
    """MuJoCo's solimp: from 0.9 at touch to 0.95 at 1 mm, by two parabolas."""
    x = abs(distance) / 0.001
    if x >= 1.0:
        return 0.95
    y = 2.0 * x * x if x <= 0.5 else 1.0 - 2.0 * (1.0 - x) * (1.0 - x)
    return 0.9 + 0.05 * y


@inlined
def _stiffness(impedance: float) -> float:
    """D of a contact: force per acceleration that is missing."""
    return impedance / ((1.0 - impedance) * _INVERSE_WEIGHT)


@bare_kernel
def _add_floor_forces(
    distance: float, velocity: NDArray[np.float64], forces: NDArray[np.float64], start: float
) -> float:
    """Add the forces of the floor alone, without walls; return k.

    With the friction rows orthogonal, the missing accelerations of friction under a force of k
    times themselves are s_i / (1 + k a_i); k is the root of one equation.

    Args:
        distance: Between ball and floor in metres, negative.
        velocity: [5], in the walker's frame.
        forces: [5], free of contacts; is updated.
        start: Where to look for k first: that of the substep before, or 0.
    """
    arm = BALL_RADIUS + 0.5 * distance
    spin = forces[4] / _ROLL_INERTIA
    turn = (forces[3] - _LEVER * forces[1]) / (_SQRT_HEADING * _SQRT_HEADING)
    left = forces[1] / _MASS - _LEVER * turn
    impedance = _impedance(distance)
    stiffness = _stiffness(impedance)
    # What friction and the normal lack: J free - reference.
    missing_left = left + _DAMPER * velocity[1]
    missing_torsion = _TORSION * (turn + _DAMPER * velocity[3])
    normal = forces[2] / _MASS + _DAMPER * velocity[2] + _SPRING * impedance * distance
    s0 = forces[0] / _MASS - arm * spin + _DAMPER * (velocity[0] - arm * velocity[4])
    s1 = _FLOOR_COS * missing_left + _FLOOR_SIN * missing_torsion
    s2 = _FLOOR_COS * missing_torsion - _FLOOR_SIN * missing_left
    a0 = 1.0 / _MASS + arm * arm / _ROLL_INERTIA
    sliding = math.sqrt(s0 * s0 + s1 * s1 + s2 * s2)
    if normal >= sliding:
        return 0.0

    force, k = _floor_normal_force(stiffness, normal, a0, s0, s1, s2, start)
    forces[2] += force
    if force <= 1e-15:
        return k

    # Noslip: the least friction that leaves no sliding, or the largest that the cone allows.
    f0, f1, f2 = _friction_in_ball(a0, _FLOOR_A, _FLOOR_B, s0, s1, s2, force)
    forces[0] += f0
    forces[1] += _FLOOR_COS * f1 - _FLOOR_SIN * f2
    forces[3] += _TORSION * (_FLOOR_SIN * f1 + _FLOOR_COS * f2)
    forces[4] -= arm * f0
    return k


@bare_kernel
def _floor_normal_force(
    stiffness: float, normal: float, a0: float, s0: float, s1: float, s2: float, start: float
) -> tuple[float, float]:
    """The normal force of the floor, and k; normal and s are what the contact's four rows lack."""
    # Inside the cone's opposite, all rows are springs.
    force = -stiffness * normal / (1.0 + stiffness / _MASS)
    x0 = s0 / (1.0 + stiffness * a0)
    x1 = s1 / (1.0 + stiffness * _FLOOR_A)
    x2 = s2 / (1.0 + stiffness * _FLOOR_B)
    if force >= stiffness * math.sqrt(x0 * x0 + x1 * x1 + x2 * x2):
        return force, 0.0
    # On its surface: k = half (1 - normal / |x(k)|), by Newton's method inside a bracket.
    half = 0.5 * stiffness / (1.0 + 0.5 * stiffness / _MASS)
    low, high = 0.0, stiffness
    length = math.sqrt(s0 * s0 + s1 * s1 + s2 * s2)
    k = start if start > 0.0 else half * (1.0 - normal / length)
    if not low < k < high:
        k = 0.5 * stiffness
    for _ in range(40):
        # With p the product of the 1 + k a_i, lengths times p: each step divides once.
        p0, p1, p2 = 1.0 + k * a0, 1.0 + k * _FLOOR_A, 1.0 + k * _FLOOR_B
        c0, c1, c2 = p1 * p2, p0 * p2, p0 * p1
        e0, e1, e2 = (s0 * c0) ** 2, (s1 * c1) ** 2, (s2 * c2) ** 2
        squared = e0 + e1 + e2
        length = math.sqrt(squared)
        excess = (k - half) * length + half * normal * (p0 * c0)
        low, high = (k, high) if excess < 0.0 else (low, k)
        slope = e0 * c0 * a0 + e1 * c1 * _FLOOR_A + e2 * c2 * _FLOOR_B
        step = -excess * squared / (squared * length + half * normal * slope)
        # Newton's method doubles the digits: the step after a small one would change nothing.
        if abs(step) < 1e-7 * k:
            k += step
            break
        k = k + step if low < k + step < high else 0.5 * (low + high)
    x0, x1, x2 = s0 / (1.0 + k * a0), s1 / (1.0 + k * _FLOOR_A), s2 / (1.0 + k * _FLOOR_B)
    return k * math.sqrt(x0 * x0 + x1 * x1 + x2 * x2), k


@bare_kernel
def _friction_in_ball(
    a0: float, a1: float, a2: float, b0: float, b1: float, b2: float, radius: float
) -> tuple[float, float, float]:
    """The f that minimises sum_i (a_i f_i^2 / 2 + b_i f_i) within |f| <= radius.

    f_i = -b_i / (a_i + multiplier), where the multiplier is zero, or the root of |f|^2 = radius^2.
    MuJoCo takes at most 20 steps of Newton's method from zero, and ends where |f|^2 is right to
    1e-10. On matrices that are almost singular it gives up: f = 0. All of this changes walks along
    walls, so a faster method for the same root is not equivalent. With p the product of the
    a_i + multiplier and c_i = p / (a_i + multiplier), each step divides once.
    """
    if a0 * a1 * a2 < 1e-10:
        return 0.0, 0.0, 0.0
    squared_radius = radius * radius
    b00, b11, b22 = b0 * b0, b1 * b1, b2 * b2
    multiplier = 0.0
    p = squared = c0 = c1 = c2 = 0.0
    for _ in range(20):
        d0, d1, d2 = a0 + multiplier, a1 + multiplier, a2 + multiplier
        c0, c1, c2 = d1 * d2, d0 * d2, d0 * d1
        p = d0 * c0
        e0, e1, e2 = b00 * (c0 * c0), b11 * (c1 * c1), b22 * (c2 * c2)
        squared = e0 + e1 + e2  # |f|^2 p^2
        excess = squared - squared_radius * p * p
        if excess < 1e-10 * p * p:
            break
        step = excess * (0.5 * p / (e0 * c0 + e1 * c1 + e2 * c2))
        if step < 1e-10:
            break
        multiplier += step
    scale = -1.0 / p
    if multiplier > 0.0:
        scale = -radius / math.sqrt(squared)
    return b0 * c0 * scale, b1 * c1 * scale, b2 * c2 * scale


@inlined
def _whiten_row(
    row: NDArray[np.float64], forward: float, left: float, up: float, heading: float, roll: float
) -> None:
    """Row [5] = J W^-1 for the Jacobian row J = (forward, left, up, heading, roll)."""
    row[0] = forward / _SQRT_MASS
    row[1] = left / _SQRT_MASS
    row[2] = up / _SQRT_MASS
    row[3] = (heading - left * _LEVER) / _SQRT_HEADING
    row[4] = roll / _SQRT_ROLL


@inlined
def _whiten_velocity(whitened: NDArray[np.float64], velocity: NDArray[np.float64]) -> None:
    """Fill `whitened` [5] with W times a velocity in the walker's frame."""
    whitened[0] = _SQRT_MASS * velocity[0]
    whitened[1] = _SQRT_MASS * (velocity[1] + _LEVER * velocity[3])
    whitened[2] = _SQRT_MASS * velocity[2]
    whitened[3] = _SQRT_HEADING * velocity[3]
    whitened[4] = _SQRT_ROLL * velocity[4]


@inlined
def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3] + a[4] * b[4]


@bare_kernel
def _set_contact(
    rows: NDArray[np.float64],
    reference: NDArray[np.float64],
    whitened_velocity: NDArray[np.float64],
    distance: float,
    is_floor: bool,
    toward_forward: float,
    toward_left: float,
) -> float:
    """Fill a contact's rows [4, 5] and reference accelerations [4]; return its stiffness.

    Args:
        rows: Filled; the friction rows 1 to 3 orthogonal.
        reference: Filled.
        whitened_velocity: [5], W times the velocity in the walker's frame.
        distance: Metres, negative.
        is_floor: The normal points up; otherwise it points away from a wall.
        toward_forward: Direction from the ball to the wall in the walker's frame.
        toward_left: Likewise.
    """
    arm = BALL_RADIUS + 0.5 * distance
    if is_floor:
        _whiten_row(rows[0], 0.0, 0.0, 1.0, 0.0, 0.0)
        _whiten_row(rows[1], 1.0, 0.0, 0.0, 0.0, -arm)
        _whiten_row(rows[2], 0.0, 1.0, 0.0, 0.0, 0.0)
        _whiten_row(rows[3], 0.0, 0.0, 0.0, _TORSION, 0.0)
    else:
        ahead, aside = toward_forward, toward_left
        _whiten_row(rows[0], -ahead, -aside, 0.0, 0.0, 0.0)
        _whiten_row(rows[1], -aside, ahead, 0.0, arm, 0.0)
        _whiten_row(rows[2], 0.0, 0.0, 1.0, 0.0, -ahead * arm)
        _whiten_row(rows[3], 0.0, 0.0, 0.0, 0.0, _TORSION * aside)
    # Rows 2 and 3 are turned until they are orthogonal; row 1 already is.
    mixed = _dot(rows[2], rows[3])
    if mixed != 0.0:
        # By half the angle of (half_difference, mixed); row 2 is always the longer one.
        half_difference = 0.5 * (_dot(rows[2], rows[2]) - _dot(rows[3], rows[3]))
        length = math.sqrt(half_difference * half_difference + mixed * mixed)
        c = math.sqrt(0.5 + 0.5 * half_difference / length)
        s = 0.5 * mixed / (length * c)
        for k in range(5):
            a, b = rows[2, k], rows[3, k]
            rows[2, k], rows[3, k] = c * a + s * b, c * b - s * a
    for j in range(4):
        reference[j] = -_DAMPER * _dot(rows[j], whitened_velocity)
    impedance = _impedance(distance)
    reference[0] -= _SPRING * impedance * distance
    return _stiffness(impedance)


@inlined
def _sliding(missing: NDArray[np.float64]) -> float:
    """The acceleration that friction lacks, of a contact's four."""
    return math.sqrt(missing[1] ** 2 + missing[2] ** 2 + missing[3] ** 2)


@inlined
def _set_forces(
    stiffness: float, missing: NDArray[np.float64], forces: NDArray[np.float64]
) -> None:
    """Forces [4] = stiffness P(-missing), P the projection onto the friction cone."""
    normal, sliding = missing[0], _sliding(missing)
    if normal >= sliding:
        forces[:] = 0.0
    elif normal + sliding <= 0.0:
        for j in range(4):
            forces[j] = -stiffness * missing[j]
    else:
        force = 0.5 * stiffness * (sliding - normal)
        forces[0] = force
        for j in range(1, 4):
            forces[j] = -force / sliding * missing[j]


@inlined
def _set_gradient(
    num_contacts: int,
    rows: NDArray[np.float64],
    reference: NDArray[np.float64],
    stiffness: NDArray[np.float64],
    u: NDArray[np.float64],
    free: NDArray[np.float64],
    missing: NDArray[np.float64],
    forces: NDArray[np.float64],
    gradient: NDArray[np.float64],
) -> None:
    """Forces [contacts, 4] at u and the gradient [5] of the objective there."""
    for k in range(5):
        gradient[k] = u[k] - free[k]
    for i in range(num_contacts):
        for j in range(4):
            missing[i, j] = _dot(rows[i, j], u) - reference[i, j]
        _set_forces(stiffness[i], missing[i], forces[i])
        for j in range(4):
            for k in range(5):
                gradient[k] -= rows[i, j, k] * forces[i, j]


@inlined
def _add_contact_hessian(
    rows: NDArray[np.float64],
    stiffness: float,
    missing: NDArray[np.float64],
    hessian: NDArray[np.float64],
    scratch: NDArray[np.float64],
) -> None:
    """Add a contact's part to the lower half of the objective's second derivative [5, 5].

    On the cone's surface it is d/2 (g g' + (1 - normal / sliding) (F'F - w w')). F are the friction
    rows, w is the direction of sliding in them, and g is the normal row less w.
    """
    normal, sliding = missing[0], _sliding(missing)
    if normal >= sliding:
        return
    w, g = scratch[0], scratch[1]
    if normal + sliding <= 0.0:
        weight = curvature = stiffness
        for k in range(5):
            w[k], g[k] = 0.0, rows[0, k]
    else:
        weight = 0.5 * stiffness
        curvature = weight * (1.0 - normal / sliding)
        d1, d2, d3 = missing[1] / sliding, missing[2] / sliding, missing[3] / sliding
        for k in range(5):
            w[k] = d1 * rows[1, k] + d2 * rows[2, k] + d3 * rows[3, k]
            g[k] = rows[0, k] - w[k]
    for a in range(5):
        for b in range(a + 1):
            friction = rows[1, a] * rows[1, b] + rows[2, a] * rows[2, b] + rows[3, a] * rows[3, b]
            hessian[a, b] += weight * g[a] * g[b] + curvature * (friction - w[a] * w[b])


@inlined
def _factorize(matrix: NDArray[np.float64]) -> None:
    """The L D L' factors of a positive definite matrix [5, 5], in place of its lower half."""
    for j in range(5):
        pivot = matrix[j, j]
        for k in range(j):
            pivot -= matrix[j, k] * matrix[j, k] * matrix[k, k]
        matrix[j, j] = pivot
        inverse = 1.0 / pivot
        for i in range(j + 1, 5):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k] * matrix[k, k]
            matrix[i, j] = total * inverse


@inlined
def _substitute(factors: NDArray[np.float64], vector: NDArray[np.float64]) -> None:
    """Solve for a vector [5], in place, with the factors of `_factorize`."""
    for i in range(5):
        for k in range(i):
            vector[i] -= factors[i, k] * vector[k]
    for i in range(5):
        vector[i] /= factors[i, i]
    for i in range(4, -1, -1):
        for k in range(i + 1, 5):
            vector[i] -= factors[k, i] * vector[k]


@inlined
def _set_direction(
    num_contacts: int,
    rows: NDArray[np.float64],
    stiffness: NDArray[np.float64],
    missing: NDArray[np.float64],
    gradient: NDArray[np.float64],
    direction: NDArray[np.float64],
    hessian: NDArray[np.float64],
    scratch: NDArray[np.float64],
) -> None:
    """Newton's direction [5], minus the gradient over the second derivative."""
    hessian[:, :] = 0.0
    for k in range(5):
        hessian[k, k] = 1.0
        direction[k] = -gradient[k]
    for i in range(num_contacts):
        _add_contact_hessian(rows[i], stiffness[i], missing[i], hessian, scratch)
    _factorize(hessian)
    _substitute(hessian, direction)


@inlined
def _slope(
    num_contacts: int,
    stiffness: NDArray[np.float64],
    missing: NDArray[np.float64],
    change: NDArray[np.float64],
    step: float,
) -> float:
    """The contacts' part of the objective's slope along a direction, a step from its start."""
    slope = 0.0
    for i in range(num_contacts):
        c0, c1, c2, c3 = change[i, 0], change[i, 1], change[i, 2], change[i, 3]
        normal, m1 = missing[i, 0] + step * c0, missing[i, 1] + step * c1
        m2, m3 = missing[i, 2] + step * c2, missing[i, 3] + step * c3
        sliding = math.sqrt(m1 * m1 + m2 * m2 + m3 * m3)
        if normal >= sliding:
            continue
        along = m1 * c1 + m2 * c2 + m3 * c3
        if normal + sliding <= 0.0:
            slope += stiffness[i] * (normal * c0 + along)
        else:
            slope += 0.5 * stiffness[i] * (sliding - normal) * (along / sliding - c0)
    return slope


@inlined
def _search_line(
    num_contacts: int,
    stiffness: NDArray[np.float64],
    missing: NDArray[np.float64],
    change: NDArray[np.float64],
    linear: float,
    squared: float,
    first_slope: float,
) -> float:
    """The step along a direction at which the objective's slope has shrunk to a tenth.

    Almost always that is the whole step; else a root is bracketed and interpolated.

    Args:
        num_contacts: Contacts.
        stiffness: [contacts].
        missing: [contacts, 4] where the direction starts.
        change: [contacts, 4] what `missing` gains along the direction.
        linear: (start - free) dot direction.
        squared: Direction dot direction.
        first_slope: At the start, negative.
    """
    low, high, step = 0.0, -1.0, 1.0
    low_slope, high_slope = first_slope, 0.0
    for _ in range(30):
        slope = linear + step * squared + _slope(num_contacts, stiffness, missing, change, step)
        if abs(slope) <= 0.1 * abs(first_slope):
            break
        if slope < 0.0:
            low, low_slope = step, slope
        else:
            high, high_slope = step, slope
        if high < 0.0:
            step = 2.0 * step
        else:
            share = low_slope / (low_slope - high_slope)
            step = low + (high - low) * min(max(share, 0.1), 0.9)
    return step


@bare_kernel
def _solve_contacts(
    num_contacts: int,
    rows: NDArray[np.float64],
    reference: NDArray[np.float64],
    stiffness: NDArray[np.float64],
    u: NDArray[np.float64],
    free: NDArray[np.float64],
    missing: NDArray[np.float64],
    forces: NDArray[np.float64],
    change: NDArray[np.float64],
    scratch: NDArray[np.float64],
) -> None:
    """Newton's method on the objective; u [5] is the start and becomes the minimiser."""
    gradient, direction = scratch[0], scratch[1]
    hessian, rest = scratch[2:7], scratch[7:9]
    _set_gradient(num_contacts, rows, reference, stiffness, u, free, missing, forces, gradient)
    for _ in range(50):
        if _dot(gradient, gradient) < 1e-18:
            return
        _set_direction(num_contacts, rows, stiffness, missing, gradient, direction, hessian, rest)
        first_slope = _dot(gradient, direction)
        for i in range(num_contacts):
            for j in range(4):
                change[i, j] = _dot(rows[i, j], direction)
        linear = _dot(u, direction) - _dot(free, direction)
        squared = _dot(direction, direction)
        step = _search_line(num_contacts, stiffness, missing, change, linear, squared, first_slope)
        for k in range(5):
            u[k] += step * direction[k]
        _set_gradient(num_contacts, rows, reference, stiffness, u, free, missing, forces, gradient)
        if abs(first_slope) < 1e-16:
            return


@inlined
def _noslip_contact(
    rows: NDArray[np.float64],
    reference: NDArray[np.float64],
    forces: NDArray[np.float64],
    u: NDArray[np.float64],
) -> float:
    """Find one contact's friction without softness; return what the objective loses.

    Args:
        rows: [4, 5].
        reference: [4].
        forces: [4], of which the last three are set.
        u: [5], the accelerations under all forces, which follow.
    """
    if forces[0] < 1e-15:
        return 0.0
    a0, a1, a2 = _dot(rows[1], rows[1]), _dot(rows[2], rows[2]), _dot(rows[3], rows[3])
    r0 = _dot(rows[1], u) - reference[1]
    r1 = _dot(rows[2], u) - reference[2]
    r2 = _dot(rows[3], u) - reference[3]
    f0, f1, f2 = _friction_in_ball(
        a0,
        a1,
        a2,
        r0 - a0 * forces[1],
        r1 - a1 * forces[2],
        r2 - a2 * forces[3],
        forces[0],
    )
    c0, c1, c2 = f0 - forces[1], f1 - forces[2], f2 - forces[3]
    gain = -(c0 * (0.5 * a0 * c0 + r0) + c1 * (0.5 * a1 * c1 + r1) + c2 * (0.5 * a2 * c2 + r2))
    if gain < -1e-10:
        return 0.0
    forces[1], forces[2], forces[3] = f0, f1, f2
    for k in range(5):
        u[k] += rows[1, k] * c0 + rows[2, k] * c1 + rows[3, k] * c2
    return gain


@bare_kernel
def _noslip(
    num_contacts: int,
    rows: NDArray[np.float64],
    reference: NDArray[np.float64],
    stiffness: NDArray[np.float64],
    free: NDArray[np.float64],
    forces: NDArray[np.float64],
    u: NDArray[np.float64],
) -> None:
    """Find friction again without softness, contact by contact, five times; u [5] follows."""
    softness = 0.0
    for k in range(5):
        u[k] = free[k]
    for i in range(num_contacts):
        for j in range(4):
            softness += 0.5 * forces[i, j] ** 2 / stiffness[i]
            for k in range(5):
                u[k] += rows[i, j, k] * forces[i, j]
    for sweep in range(_NUM_NOSLIP):
        # The first sweep also loses the energy of the soft contacts.
        gain = softness if sweep == 0 else 0.0
        for i in range(num_contacts):
            gain += _noslip_contact(rows[i], reference[i], forces[i], u)
        if gain < 0.0 or (sweep > 0 and gain < 1e-13):
            break


@bare_kernel
def _find_walls(
    x: float,
    y: float,
    box_of_cell: NDArray[np.int16],
    boxes: NDArray[np.uint8],
    walls: NDArray[np.float64],
) -> int:
    """Wall boxes that the ball at (x, y) touches: walls [max, 3] = (distance, toward x, toward y).

    They come in the order of the original's geoms, in which noslip goes through them.
    """
    n = box_of_cell.shape[0]
    gx, gy = x / CELL + 0.5 * n, 0.5 * n - y / CELL
    column, row = int(gx), int(gy)
    reach = BALL_RADIUS / CELL + 1e-3
    fx, fy = gx - column, gy - row
    first_column, last_column = column - (fx < reach), column + (fx > 1.0 - reach)
    first_row, last_row = row - (fy < reach), row + (fy > 1.0 - reach)
    count = 0
    last_box = -1
    while count < _MAX_CONTACTS - 1:
        box = 32767
        for r in range(first_row, last_row + 1):
            for c in range(first_column, last_column + 1):
                if last_box < box_of_cell[r, c] < box:
                    box = box_of_cell[r, c]
        if box == 32767:
            break
        last_box = box
        left, right = (boxes[box, 1] - 0.5 * n) * CELL, (boxes[box, 3] - 0.5 * n) * CELL
        top, bottom = (0.5 * n - boxes[box, 0]) * CELL, (0.5 * n - boxes[box, 2]) * CELL
        dx, dy = min(max(x, left), right) - x, min(max(y, bottom), top) - y
        length = math.sqrt(dx * dx + dy * dy)
        if length > BALL_RADIUS or length < 1e-12:
            continue
        walls[count, 0] = length - BALL_RADIUS
        walls[count, 1], walls[count, 2] = dx / length, dy / length
        count += 1
    return count


@inlined
def _add_wall_forces(
    num_walls: int,
    walls: NDArray[np.float64],
    height: float,
    local_velocity: NDArray[np.float64],
    forces: NDArray[np.float64],
    cos: float,
    sin: float,
    u: NDArray[np.float64],
    scratch: Scratch,
) -> None:
    """Add the forces of floor and walls to `forces` [5]; u [5] is the solver's warm start."""
    rows, vectors = scratch.rows, scratch.vectors
    reference, missing = scratch.fours[0], scratch.fours[1]
    contact_forces, change = scratch.fours[2], scratch.fours[3]
    stiffness, velocity, free, final = vectors[0], vectors[1], vectors[2], vectors[3]
    _whiten_velocity(velocity, local_velocity)
    # A force turns into whitened accelerations as a Jacobian row does.
    _whiten_row(free, forces[0], forces[1], forces[2], forces[3], forces[4])
    count = 0
    if height < 0.0:
        stiffness[0] = _set_contact(rows[0], reference[0], velocity, height, True, 0.0, 0.0)
        count = 1
    for i in range(num_walls):
        forward = cos * walls[i, 1] + sin * walls[i, 2]
        left = -sin * walls[i, 1] + cos * walls[i, 2]
        stiffness[count] = _set_contact(
            rows[count], reference[count], velocity, walls[i, 0], False, forward, left
        )
        count += 1
    rest = vectors[4:13]
    _solve_contacts(
        count, rows, reference, stiffness, u, free, missing, contact_forces, change, rest
    )
    _noslip(count, rows, reference, stiffness, free, contact_forces, final)
    # Back to forces: W' (u - free).
    d1 = final[1] - free[1]
    forces[0] += _SQRT_MASS * (final[0] - free[0])
    forces[1] += _SQRT_MASS * d1
    forces[2] += _SQRT_MASS * (final[2] - free[2])
    forces[3] += _SQRT_HEADING * (final[3] - free[3]) + _SQRT_MASS * _LEVER * d1
    forces[4] += _SQRT_ROLL * (final[4] - free[4])


@inlined
def _integrate(
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
    forces: NDArray[np.float64],
    cos: float,
    sin: float,
) -> None:
    """Make one substep of Euler's method with implicit damping."""
    h = SUBSTEP_SECONDS
    ahead = forces[0] / _MASS
    left = (_DAMPED_HEADING * forces[1] - _CAMERA_MOMENT * forces[3]) / _DAMPED_DETERMINANT
    turn = (_MASS * forces[3] - _CAMERA_MOMENT * forces[1]) / _DAMPED_DETERMINANT
    velocity[0] += h * (ahead * cos - left * sin)
    velocity[1] += h * (ahead * sin + left * cos)
    velocity[2] += h * forces[2] / _MASS
    velocity[3] += h * turn
    velocity[4] += h * forces[4] / _DAMPED_ROLL
    for k in range(5):
        position[k] += h * velocity[k]


@inlined
def _touches(position: NDArray[np.float64], tx: float, ty: float, target_height: float) -> bool:
    """Whether the walker touches the sphere at (tx, ty)."""
    x, y, z, heading = position[0], position[1], position[2], position[3]
    dx, dy = tx - x, ty - y
    if target_height < 0.5:
        dz = z + BALL_RADIUS - target_height
        return dx * dx + dy * dy + dz * dz <= (TARGET_RADIUS + BALL_RADIUS) ** 2
    # A floating sphere is out of the ball's reach and meets the head: an upright cylinder of
    # radius 0.1 m with its top at 0.59 m, and ahead of it the face, a lying one.
    if dx * dx + dy * dy > 1.0:
        return False
    horizontal = max(math.sqrt(dx * dx + dy * dy) - 0.1, 0.0)
    above = target_height - (z + 0.59)
    if horizontal * horizontal + above * above <= TARGET_RADIUS**2:
        return True
    cos, sin = math.cos(heading), math.sin(heading)
    forward, left = cos * dx + sin * dy - 0.1, -sin * dx + cos * dy
    ahead = max(abs(forward) - 0.035, 0.0)
    up = target_height - (z + 0.53)
    aside = max(math.sqrt(left * left + up * up) - 0.05, 0.0)
    return ahead * ahead + aside * aside <= TARGET_RADIUS**2


@bare_kernel
def move_walker(
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
    roll_control: float,
    steer_control: float,
    num_substeps: int,
    box_of_cell: NDArray[np.int16],
    boxes: NDArray[np.uint8],
    targets: NDArray[np.float64],
    target_height: float,
    scratch: Scratch,
) -> int:
    """Move one walker in place for one action; return bit k set where it touched target k.

    Args:
        position: [5] x, y, height above rest in metres, heading and roll in radians.
        velocity: [5], its derivative, along the world's axes.
        roll_control: -1 (forward) to 1.
        steer_control: -1 (left) to 1.
        num_substeps: Of 5 ms.
        box_of_cell: [n, n]; see `layout.Maze`.
        boxes: [boxes, 4]; see `layout.Maze`.
        targets: [targets, 2] centres in metres.
        target_height: Of the targets' centres.
        scratch: Of any content.
    """
    walls = scratch.walls
    local, forces, u = scratch.vectors[13], scratch.vectors[14], scratch.vectors[15]
    for k in range(5):
        u[k] = 0.0
    touched, sliding_share = 0, 0.0
    for _ in range(num_substeps):
        cos, sin = math.cos(position[3]), math.sin(position[3])
        local[0] = cos * velocity[0] + sin * velocity[1]
        local[1] = cos * velocity[1] - sin * velocity[0]
        local[2], local[3], local[4] = velocity[2], velocity[3], velocity[4]
        forces[0] = _CAMERA_MOMENT * velocity[3] * velocity[3]
        forces[1] = 0.0
        forces[2] = -_MASS * _GRAVITY
        forces[3] = -_HEADING_DAMPING * velocity[3] - _HEADING_GEAR * steer_control
        forces[4] = -_ROLL_DAMPING * velocity[4] - _ROLL_GEAR * roll_control
        num_walls = _find_walls(position[0], position[1], box_of_cell, boxes, walls)
        if num_walls > 0:
            _add_wall_forces(num_walls, walls, position[2], local, forces, cos, sin, u, scratch)
        elif position[2] < 0.0:
            sliding_share = _add_floor_forces(position[2], local, forces, sliding_share)
        _integrate(position, velocity, forces, cos, sin)
        for k in range(len(targets)):
            if _touches(position, targets[k, 0], targets[k, 1], target_height):
                touched |= 1 << k
    return touched
