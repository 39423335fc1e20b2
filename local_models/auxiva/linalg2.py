"""Closed forms for Hermitian 2 x 2 matrices: differentiable, batched, finite where a matrix is singular.

A matrix is [[a, conj(b)], [b, d]] with real a and d, in this order everywhere. The compiled twins stand in
`compiled_linalg`, with the same names and the same numbers of steps.
"""

import torch


def entries(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Entries a, b and d of Hermitian [[a, conj(b)], [b, d]], (..., 2, 2) to (...) each; a and d are real."""
    a = matrix[..., 0, 0].real
    b = matrix[..., 1, 0]
    d = matrix[..., 1, 1].real
    return a, b, d


def inverse2(matrix: torch.Tensor, eps: float) -> torch.Tensor:
    """Inverse of positive semidefinite (..., 2, 2); zero where the determinant is below rounding."""
    # Above the diagonal stands conj(b).
    a, _, d = entries(matrix)
    above = matrix[..., 0, 1]
    # The determinant is a difference of terms of size a d.
    product = a * d
    determinant = product - above.abs().square()
    # Below their rounding it says nothing, and the gradient of its reciprocal would be infinite.
    regular = determinant > eps * product
    safe = torch.where(regular, determinant, 1.0)
    factor = torch.where(regular, 1 / safe, 0.0)
    # The inverse is [[d, -conj(b)], [-b, a]] over the determinant, here entry by entry, row after row.
    first = d.to(above.dtype)
    last = a.to(above.dtype)
    below = above.conj()
    adjugate = torch.stack([first, -above, -below, last], dim=-1)
    inverse = adjugate * factor[..., None]
    return inverse.unflatten(-1, (2, 2))


def eigenvectors(
    first: torch.Tensor,
    last: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both eigenvectors of `first` h = lambda `last` h, of positive semidefinite (..., 2, 2).

    Twin: `compiled_linalg.eigenvectors`.

    Returns:
        h (..., 2) of the smaller lambda, and of the larger one, of any length and phase. Where the sum of the
        matrices is singular, or all vectors are eigenvectors, these are the unit vectors in their order.
    """
    # Step 1: the sum of both has the same eigenvectors as `last`, and is definite if either matrix is.
    a, b, d = entries(first + last)
    # Matrices of very few frames are indefinite by their rounding.
    schur = a * d - b.abs().square()
    regular = (a > 0) & (schur > eps * a * d)

    # Step 2: the Cholesky factor of the sum, L = [[low, 0], [below, high]].
    low = torch.where(regular, a, 1.0).sqrt()
    high = torch.where(regular, schur, 1.0).sqrt() / low
    below = torch.where(regular, b / low, 0.0)

    # Step 3: with `first` = [[p, conj(r)], [r, s]] the problem becomes that of C = L^-1 first L^-H.
    p, r, s = entries(first)
    c00 = p / low.square()
    c10 = (r / low - below * c00) / high
    cross = 2 * (below.conj() * r).real / low
    inner = s - cross + below.abs().square() * c00
    c11 = inner / high.square()

    # Step 4: the eigenvalues of C are (c00 + c11) / 2 -+ root.
    half = (c00 - c11) / 2
    square = half.square() + c10.abs().square()
    # Where both are equal, every vector is an eigenvector.
    rounding = eps * (c00 + c11)
    regular = regular & (square > rounding.square())
    root = torch.where(regular, square, 1.0).sqrt()

    # Step 5: of two formulas for the eigenvector (x, y) of the smaller value, the one without cancellation.
    upper = half < 0
    difference = (root - half).to(c10.dtype)
    negative_sum = -(root + half).to(c10.dtype)
    x = torch.where(upper, difference, c10.conj())
    y = torch.where(upper, -c10, negative_sum)
    x = torch.where(regular, x, 1.0)
    y = torch.where(regular, y, 0.0)

    # Step 6: the other one is orthogonal to it, and L^-H takes both back.
    smaller = _back(x, y, low, high, below)
    larger = _back(-y.conj(), x.conj(), low, high, below)
    return smaller, larger


def _back(
    x: torch.Tensor,
    y: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    below: torch.Tensor,
) -> torch.Tensor:
    """L^-H (x, y), (..., 2), with L = [[low, 0], [below, high]]."""
    last = y / high
    first = (x - below.conj() * last) / low
    return torch.stack([first, last], dim=-1)


def normalise(vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`vector` h (..., 2) over sqrt(h^H matrix h), for positive semidefinite (..., 2, 2); as it is where that is 0.

    Twin: `compiled_linalg.length`.
    """
    image = (matrix @ vector[..., None]).squeeze(-1)
    form = (vector.conj() * image).sum(-1).real
    # A vector without power under the matrix has no length to divide by.
    safe = torch.where(form > 0, form, 1.0)
    return vector / safe.sqrt()[..., None]
