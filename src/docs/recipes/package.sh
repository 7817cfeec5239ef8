#!/bin/sh
# Packs what `make release` has built: package.sh BINARY ARCH RUNS FOLDER
#
# Makes FOLDER/sidebike-VERSION-ARCH-linux.tar.gz. RUNS is a binary of the same version that runs here, which a
# BINARY for another architecture does not: it writes the completions and the manual pages.
set -eu
binary=$1 arch=$2 runs=$3 folder=$4
recipes=$(dirname "$0")
version=$("$runs" --version | sed 's/.* //')
name=sidebike-$version-$arch-linux
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
to=$work/$name
mkdir -p "$to/completions" "$to/man" "$to/recipes"

cp "$binary" "$to/sidebike"
chmod 0755 "$to/sidebike"
cp "$recipes/../../../LICENSE" "$recipes/../../../README.md" "$to"
for file in "$recipes"/*; do
    [ "$file" -ef "$0" ] || cp "$file" "$to/recipes"
done
"$runs" completions bash >"$to/completions/sidebike.bash"
"$runs" completions zsh >"$to/completions/_sidebike"
"$runs" completions fish >"$to/completions/sidebike.fish"
"$runs" man >"$to/man/sidebike.1"
commands=$("$runs" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p')
for command in $commands; do
    [ "$command" = help ] || "$runs" man "$command" >"$to/man/sidebike-$command.1"
done
(cd "$to" && find . -type f ! -name SHA256SUMS | sed 's|^\./||' | sort | xargs sha256sum >SHA256SUMS)

# The same input gives the same archive.
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$work/all.tar" "$name"
gzip -n9 "$work/all.tar"
mv "$work/all.tar.gz" "$folder/$name.tar.gz"
