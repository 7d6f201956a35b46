"""Model families, behind the seam of `bld.models.base`."""
