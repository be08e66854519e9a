#!/usr/bin/env bash
# A C++ compiler that compiles the headers which the files of a build have in common only once; `make install` names it as CXX.
#
# It is called through a link in an empty folder of its own, where the precompiled header is kept until the build removes it. The
# environment names the headers (PRECOMPILE_HEADERS, e.g. 'torch/types.h vector') and the compiler (PRECOMPILE_CXX).
#
# The first call that compiles makes the header, by its own options; calls beside it do not wait. GCC takes a precompiled
# header only for the same options, and otherwise reads the file of its name, which is empty here: no file gets slower by
# it. What fails with the header is compiled without it before it counts as failed. Other compilers than GCC make none.
set -u

folder=$(dirname "$0")
header=$folder/common.hpp
# Like CXX it may hold options, or a launcher such as ccache.
read -ra compiler <<< "$PRECOMPILE_CXX"

compiles() {
    local argument
    for argument; do
        [ "$argument" != -c ] || return 0
    done
    return 1
}

# Of a call like `-O2 -c a.cpp -o a.o -MMD -MF a.d` leave out what is compiled and where to.
make_header() {
    local options=()
    while [ $# -gt 0 ]; do
        case $1 in
            -o | -MF | -MT | -MQ) shift ;;
            -c | -M* | *.cpp | *.cc | *.cxx) ;;
            *) options+=("$1") ;;
        esac
        shift
    done
    {
        printf '#if !defined(__GNUC__) || defined(__clang__)\n#error "this is not GCC"\n#endif\n'
        # shellcheck disable=SC2086 # one include for each word
        printf '#include <%s>\n' $PRECOMPILE_HEADERS
    } > "$folder/source.hpp"
    : > "$header"
    # Moved, since other calls must not find half of it.
    "${compiler[@]}" "${options[@]}" -x c++-header "$folder/source.hpp" -o "$folder/part" > "$folder/log" 2>&1 \
        && mv "$folder/part" "$header.gch"
}

if compiles "$@"; then
    if mkdir "$folder/begun" 2> /dev/null; then
        start=$SECONDS
        if make_header "$@"; then
            echo "precompiled header: made in $((SECONDS - start)) s"
        else
            echo "precompiled header: none, $PRECOMPILE_CXX could not make it; every file reads the headers for itself"
        fi
    fi
    if [ -e "$header.gch" ]; then
        "${compiler[@]}" -include "$header" -Winvalid-pch "$@" && exit
        echo 'precompiled header: a file failed with it, and is compiled without it now'
    fi
fi
exec "${compiler[@]}" "$@"
