#!/usr/bin/env bash
# R's mclust 6.0.0. Under priorControl() the M step of model "EII" leaves the prior's scale out of the variance: its
# numerator is the scatter about the means, its divisor the one that belongs to numerator plus scale (Fraley & Raftery
# 2007, table 1). "VII" has the scale. On iris with three components the variance comes out 0.8 % too small.
# Needs R and apt; the package is unpacked in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && apt-get download -qq "r-cran-mclust=6.0.0-1" 2>/dev/null && dpkg -x r-cran-mclust_*.deb .)
R_LIBS="$folder/usr/lib/R/site-library" Rscript - <<'R'
suppressMessages(library(mclust))
cat("mclust", as.character(packageVersion("mclust")), "from", dirname(path.package("mclust")), "\n")
x <- as.matrix(iris[, 1:4]); n <- nrow(x); d <- ncol(x); k <- 3
z <- unmap(as.integer(iris$Species))
left_over <- function(model) {
  p <- mstep(x, modelName = model, z = z, prior = priorControl())$parameters
  own <- defaultPrior(x, k, model)
  counts <- colSums(z)
  variances <- rep(p$variance$sigmasq, length.out = k)
  scatter <- sapply(1:k, function(j) {
    centre <- colSums(z[, j] * x) / counts[j]
    sum(z[, j] * sweep(x, 2, centre)^2) +
      own$shrinkage * counts[j] / (own$shrinkage + counts[j]) * sum((centre - own$mean)^2)
  })
  if (model == "EII") p$variance$sigmasq * ((n + k) * d + own$dof + 2) - sum(scatter)
  else variances[1] * ((counts[1] + 1) * d + own$dof + 2) - scatter[1]
}
scale <- defaultPrior(x, k, "EII")$scale
found <- sapply(c(EII = "EII", VII = "VII"), left_over) / scale
cat("share of the prior's scale that is in the variance:", sprintf("%s %.6f", names(found), found), "\n")
stopifnot(abs(found["EII"]) < 1e-3, abs(found["VII"] - 1) < 1e-3)
R
