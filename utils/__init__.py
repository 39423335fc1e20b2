import warnings

# Said by pinned libraries to each other at import, not to a user.
warnings.filterwarnings("ignore", message=".*pkg_resources is deprecated")
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
