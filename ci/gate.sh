#!/usr/bin/env bash
# Gates a change: builds the bundle of the merge base and that of the working tree by the same command, and compares
# them here and now.  Used by action.yml, by ci/gitlab/tsexport-gate.yml (which holds this text) and by .ci/run.
#
#   TSEXPORT_GATE_BUILD      shell command that builds a bundle into "$TSEXPORT_OUT/bundle"; run at the top of each tree
#   TSEXPORT_GATE_BASE       what the change is against: a branch, tag or commit (default origin/main)
#   TSEXPORT_GATE_THRESHOLD  the slowdown that matters (default 5%)
#   TSEXPORT_GATE_PATHS      space-separated: where none of these differs from the base, nothing is built (default all)
#   TSEXPORT_GATE_OUT        folder for bundles, junit.xml, summary.md, result (default .tsexport-gate)
#   TSEXPORT_GATE_COMPARE    the command that compares (default tsexport compare)
#   TSEXPORT_GATE_INCONCLUSIVE  the exit code where nothing can be said (default 0)
#
# Ends with 0 where the candidate is as fast or faster, and with a warning where nothing can be said (no base here, a
# base that does not build, bundles with other inputs, too much noise); with 4 where a regression was confirmed; else with
# the code of the command that failed.  $TSEXPORT_GATE_OUT/result holds one word: passed, regression, inconclusive, failed.
set -euo pipefail

build=${TSEXPORT_GATE_BUILD:?"TSEXPORT_GATE_BUILD is the command that builds a bundle into \"\$TSEXPORT_OUT/bundle\""}
against=${TSEXPORT_GATE_BASE:-origin/main}
threshold=${TSEXPORT_GATE_THRESHOLD:-5%}
threshold=${threshold// /}
compare=${TSEXPORT_GATE_COMPARE:-tsexport compare}
out=${TSEXPORT_GATE_OUT:-.tsexport-gate}
read -ra paths <<<"${TSEXPORT_GATE_PATHS:-.}"

mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out/result" "$out/junit.xml" "$out/summary.md"
echo '*' >"$out/.gitignore" # what is built here is no change of the tree

finish() { # WORD CODE
  echo "$1" >"$out/result"
  exit "$2"
}

inconclusive() { # REASON: never red
  if [ -n "${GITHUB_ACTIONS:-}" ]; then echo "::warning title=tsexport gate::inconclusive: $1"; fi
  echo "tsexport gate: inconclusive: $1" >&2
  if [ ! -e "$out/summary.md" ]; then
    printf '## tsexport gate\n\ninconclusive: %s\n' "$1" >"$out/summary.md"
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then cat "$out/summary.md" >>"$GITHUB_STEP_SUMMARY"; fi
  fi
  finish inconclusive "${TSEXPORT_GATE_INCONCLUSIVE:-0}"
}

# compare's exit code for it is that of bundles which cannot be compared, which is never red: the gate would stay open.
if ! [[ $threshold =~ ^([1-9][0-9]?(\.[0-9]+)?|0?\.[0-9]*[1-9][0-9]*)%$|^0?\.[0-9]*[1-9][0-9]*$ ]]; then
  echo "tsexport gate: the threshold is '$threshold'; allowed are changes above 0 and below 100 %, written 5% or 0.05" >&2
  finish failed 2
fi

git rev-parse --verify --quiet 'HEAD^{commit}' >/dev/null 2>&1 || inconclusive "this is no git repository with a commit"

find_base() {
  git merge-base HEAD "$against" 2>/dev/null && return
  # A shallow clone has neither the other branch nor its history.
  if git remote get-url origin >/dev/null 2>&1; then
    local branch=${against#origin/}
    git fetch --quiet --no-tags origin "+$branch:refs/tsexport-gate/base" >&2 || true
    if [ "$(git rev-parse --is-shallow-repository)" = true ]; then git fetch --quiet --unshallow origin >&2 || true; fi
    git merge-base HEAD refs/tsexport-gate/base 2>/dev/null && return
    git merge-base HEAD "$against" 2>/dev/null && return
  fi
  return 1
}

base=$(find_base) || inconclusive "no common history with $against here (a shallow clone needs fetch-depth: 0)"
if [ "$base" = "$(git rev-parse HEAD)" ]; then # on the branch itself: against the commit before
  if git diff --quiet HEAD -- "${paths[@]}"; then
    base=$(git rev-parse --verify --quiet 'HEAD~1^{commit}') || inconclusive "there is no commit before HEAD here"
  fi
fi
echo "tsexport gate: against $base"
if git diff --quiet "$base" -- "${paths[@]}" && [ -z "$(git ls-files --others --exclude-standard -- "${paths[@]}")" ]; then
  echo "tsexport gate: nothing that the bundle is made of differs from $base"
  printf '## tsexport gate\n\nnothing that the bundle is made of differs from %s\n' "$base" >"$out/summary.md"
  finish passed 0
fi

build_in() { # TREE FOLDER
  rm -rf "$2.partial"
  mkdir -p "$2.partial"
  (cd "$1" && TSEXPORT_OUT="$2.partial" bash -euo pipefail -c "$build") >&2 || return
  if [ ! -e "$2.partial/bundle/manifest.json" ]; then
    echo "tsexport gate: the build command left no bundle in \$TSEXPORT_OUT/bundle" >&2
    return 2
  fi
  rm -rf "$2"
  mv "$2.partial" "$2"
}

build_in "$PWD" "$out/candidate" || {
  code=$?
  echo "tsexport gate: the candidate does not build (exit code $code)" >&2
  finish failed "$code"
}

find "$out" -maxdepth 1 -name 'base-*' ! -name "base-$base" -exec rm -rf {} +
if [ ! -e "$out/base-$base/bundle/manifest.json" ]; then # a cache may have it
  git worktree prune # what a run that was killed left
  tree=$(mktemp -d)
  trap 'git worktree remove --force "$tree/base" >/dev/null 2>&1 || true; rm -rf "$tree"' EXIT
  git worktree add --quiet --detach "$tree/base" "$base" || inconclusive "the base $base cannot be checked out"
  build_in "$tree/base" "$out/base-$base" || inconclusive "the base $base does not build (exit code $?)"
fi

code=0
set -- "$out/base-$base/bundle" "$out/candidate/bundle" --threshold "$threshold" \
  --junit "$out/junit.xml" --summary "$out/summary.md"
eval "$compare \"\$@\"" || code=$? # a command line, which may hold quotes
case $code in
  0) finish passed 0 ;;
  2) inconclusive "the two bundles cannot be compared; the reason stands above" ;;
  4) finish regression 4 ;;
  6) inconclusive "compare could not decide; its reason stands above" ;;
  *) finish failed "$code" ;;
esac
