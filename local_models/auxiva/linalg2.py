"""Closed forms for Hermitian 2 x 2 matrices: differentiable, batched, finite where a matrix is singular."""

import torch


def inverse2(matrix: torch.Tensor, eps: float) -> torch.Tensor:
    """Inverse of positive semidefinite (..., 2, 2); zero where the determinant is below rounding."""
    a, d = matrix[..., 0, 0].real, matrix[..., 1, 1].real
    b = matrix[..., 0, 1]
    determinant = a * d - b.abs().square()
    regular = determinant > eps * a * d
    factor = torch.where(regular, 1 / torch.where(regular, determinant, 1.0), 0.0)
    rows = torch.stack(
        [torch.stack([d.to(b.dtype), -b], -1), torch.stack([-b.conj(), a.to(b.dtype)], -1)], -2
    )
    return rows * factor[..., None, None]


def eigenvectors(
    first: torch.Tensor, last: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both eigenvectors of `first` h = lambda `last` h, of positive semidefinite (..., 2, 2).

    Returns:
        h (..., 2) of the smaller lambda, and of the larger one, of any length and phase. Where the sum of the
        matrices is singular, or all vectors are eigenvectors, these are the unit vectors in their order.
    """
    total = first + last  # the same eigenvectors, and definite if either is
    a, d, b = total[..., 0, 0].real, total[..., 1, 1].real, total[..., 1, 0]
    schur = a * d - b.abs().square()
    regular = schur > eps * a * d
    # total = L L^H, with L = [[low, 0], [b / low, high]]; the eigenproblem becomes that of C = L^-1 first L^-H.
    low = torch.where(regular, a, 1.0).sqrt()
    high = torch.where(regular, schur, 1.0).sqrt() / low
    b = torch.where(regular, b / low, 0.0)
    p, s, r = first[..., 0, 0].real, first[..., 1, 1].real, first[..., 1, 0]
    c00 = p / low.square()
    c10 = (r / low - b * c00) / high
    c11 = (s - 2 * (b.conj() * r).real / low + b.abs().square() * c00) / high.square()
    half, off = (c00 - c11) / 2, c10.abs().square()
    square = half.square() + off
    regular = regular & (square > (eps * (c00 + c11)).square())
    root = torch.where(regular, square, 1.0).sqrt()
    # Of two formulas for the eigenvector, the one without cancellation.
    upper = half < 0
    x = torch.where(upper, (root - half).to(c10.dtype), c10.conj())
    y = torch.where(upper, -c10, -(root + half).to(c10.dtype))
    x, y = torch.where(regular, x, 1.0), torch.where(regular, y, 0.0)
    smaller, larger = _back(x, y, low, high, b), _back(-y.conj(), x.conj(), low, high, b)
    return smaller, larger


def _back(x, y, low, high, b):
    """L^-H (x, y)."""
    y = y / high
    return torch.stack([(x - b.conj() * y) / low, y], -1)


def normalise(vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`vector` h (..., 2) over sqrt(h^H matrix h), for positive semidefinite (..., 2, 2); as it is where that is 0."""
    form = (vector.conj() * (matrix @ vector[..., None]).squeeze(-1)).sum(-1).real
    positive = form > 0
    return vector / torch.where(positive, form, 1.0).sqrt()[..., None]
