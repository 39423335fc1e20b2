"""Closed forms for Hermitian 2 x 2 matrices: differentiable, batched, finite where a matrix is singular."""

import torch


def inverse2(matrix: torch.Tensor, eps: float) -> torch.Tensor:
    """Inverse of positive semidefinite (..., 2, 2); zero where the determinant is below rounding."""
    # [[a, b], [conj(b), d]]
    a = matrix[..., 0, 0].real
    d = matrix[..., 1, 1].real
    b = matrix[..., 0, 1]
    determinant = a * d - b.abs().square()
    regular = determinant > eps * a * d
    factor = torch.where(regular, 1 / torch.where(regular, determinant, 1.0), 0.0)
    upper = torch.stack([d.to(b.dtype), -b], -1)
    lower = torch.stack([-b.conj(), a.to(b.dtype)], -1)
    return torch.stack([upper, lower], -2) * factor[..., None, None]


def eigenvectors(
    first: torch.Tensor, last: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both eigenvectors of `first` h = lambda `last` h, of positive semidefinite (..., 2, 2).

    Twin: `kernel._eigenvectors`.

    Returns:
        h (..., 2) of the smaller lambda, and of the larger one, of any length and phase. Where the sum of the
        matrices is singular, or all vectors are eigenvectors, these are the unit vectors in their order.
    """
    # The sum [[a, conj(b)], [b, d]] has the same eigenvectors as `last`, and is definite if either matrix is.
    total = first + last
    a = total[..., 0, 0].real
    d = total[..., 1, 1].real
    b = total[..., 1, 0]
    schur = a * d - b.abs().square()
    # Matrices of very few frames are indefinite by their rounding.
    regular = (a > 0) & (schur > eps * a * d)

    # Its Cholesky factor L = [[low, 0], [b / low, high]].
    low = torch.where(regular, a, 1.0).sqrt()
    high = torch.where(regular, schur, 1.0).sqrt() / low
    b = torch.where(regular, b / low, 0.0)

    # With `first` = [[p, conj(r)], [r, s]], the eigenproblem becomes that of C = L^-1 first L^-H.
    p = first[..., 0, 0].real
    s = first[..., 1, 1].real
    r = first[..., 1, 0]
    c00 = p / low.square()
    c10 = (r / low - b * c00) / high
    c11 = (s - 2 * (b.conj() * r).real / low + b.abs().square() * c00) / high.square()

    # Its eigenvalues are (c00 + c11) / 2 -+ root.
    half = (c00 - c11) / 2
    square = half.square() + c10.abs().square()
    regular = regular & (square > (eps * (c00 + c11)).square())
    root = torch.where(regular, square, 1.0).sqrt()

    # Of two formulas for the eigenvector (x, y) of the smaller one, that without cancellation.
    upper = half < 0
    x = torch.where(upper, (root - half).to(c10.dtype), c10.conj())
    y = torch.where(upper, -c10, -(root + half).to(c10.dtype))
    x = torch.where(regular, x, 1.0)
    y = torch.where(regular, y, 0.0)
    # The other is orthogonal to it; L^-H takes both back.
    smaller = _back(x, y, low, high, b)
    larger = _back(-y.conj(), x.conj(), low, high, b)
    return smaller, larger


def _back(x, y, low, high, b):
    """L^-H (x, y)."""
    y = y / high
    x = (x - b.conj() * y) / low
    return torch.stack([x, y], -1)


def normalise(vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`vector` h (..., 2) over sqrt(h^H matrix h), for positive semidefinite (..., 2, 2); as it is where that is 0."""
    form = (vector.conj() * (matrix @ vector[..., None]).squeeze(-1)).sum(-1).real
    positive = form > 0
    return vector / torch.where(positive, form, 1.0).sqrt()[..., None]
