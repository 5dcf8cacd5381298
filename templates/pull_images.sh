#!/bin/bash
# Bring container images into the shared cache of SIF files; runs on the login node, fed to bash on stdin.
#
#   bash -s -- CACHE_DIR [SCHEME REGISTRY REPOSITORY TAG]...      (TAG may be sha256:…)
#
# For each image one line:  ok <digest> <bytes> <path>  |  missing <why>  |  unreachable <why>  |  failed <why>
# The cache is keyed by the digest a tag points at now, so a tag that moves is a new file. Two runs that want
# the same image take turns at its lock; a file appears by rename only, whole (apptainer-pull(1)).
set -u
umask 022
cache=$1
shift
# Others read the images, and not what is under way: whoever could open a lock could hold it.
mkdir -p -- "$cache/.work" && chmod 700 -- "$cache/.work" || { echo "failed cannot write to $cache"; exit 0; }

accept=()
for type in oci.image.index.v1 oci.image.manifest.v1; do
  accept+=(-H "Accept: application/vnd.${type}+json")
done
for type in manifest.list manifest; do
  accept+=(-H "Accept: application/vnd.docker.distribution.${type}.v2+json")
done

headers() { # URL [TOKEN]: the response headers of a HEAD request, through redirects; curl's status
  curl --silent --show-error --head --location --max-time 60 "${accept[@]}" \
    ${2:+-H "Authorization: Bearer $2"} -- "$1" 2>&1
}

token() { # HEADERS REPOSITORY: an anonymous pull token from the realm that the registry names (token auth)
  [[ $1 =~ [Bb]earer\ realm=\"([^\"]+)\" ]] || return 1
  local realm=${BASH_REMATCH[1]} service=
  [[ $1 =~ service=\"([^\"]+)\" ]] && service=${BASH_REMATCH[1]}
  curl --silent --fail --max-time 60 --get --data-urlencode "service=$service" \
    --data-urlencode "scope=repository:$2:pull" -- "$realm" |
    sed -n 's/.*"\(access_\)\{0,1\}token" *: *"\([^"]*\)".*/\2/p'
}

digest() { # SCHEME REGISTRY REPOSITORY TAG: sets $digest, or $why and returns 1 (missing) or 2 (unreachable)
  local url="$1://$2/v2/$3/manifests/$4" answer
  answer=$(headers "$url") || { why=${answer##*$'\n'}; return 2; }
  if [[ $answer == *" 401"* ]]; then
    answer=$(headers "$url" "$(token "$answer" "$3")") || { why=${answer##*$'\n'}; return 2; }
  fi
  if [[ ${answer,,} =~ docker-content-digest:\ *(sha256:[0-9a-f]{64}) ]]; then
    digest=${BASH_REMATCH[1]}
    return 0
  fi
  why="the registry answered: $(grep -m1 -o '^HTTP[^[:cntrl:]]*' <<<"$answer")"
  [[ $answer =~ HTTP/[0-9.]+\ (429|5[0-9][0-9]) ]] && return 2
  return 1
}

pull() { # SCHEME REGISTRY REPOSITORY: $digest into $sif; sets $why on failure
  local work log options=()
  [[ $1 == http ]] && options+=(--no-https)
  work=$(mktemp -d "$cache/.work/pull.XXXXXX") || { why="cannot write to $cache"; return 1; }
  export APPTAINER_TMPDIR=$work APPTAINER_CACHEDIR=$work/cache
  if log=$(apptainer --quiet pull "${options[@]}" "$work/image.sif" "docker://$2/$3@$digest" 2>&1 </dev/null) &&
    chmod 644 "$work/image.sif" && sync "$work/image.sif" && mv -- "$work/image.sif" "$sif"; then
    rm -rf -- "$work"
    return 0
  fi
  why=${log##*$'\n'}
  rm -rf -- "$work"
  return 1
}

while (($# >= 4)); do
  digest='' why=''
  digest "$@"
  case $? in
    1) echo "missing $why" ;;
    2) echo "unreachable $why" ;;
    0)
      sif=$cache/${digest/:/-}.sif
      if [[ ! -f $sif ]]; then
        exec 9>"$cache/.work/${digest/:/-}.lock"
        flock 9
        [[ -f $sif ]] || pull "$1" "$2" "$3"
        exec 9>&-
      fi
      if [[ -f $sif ]]; then
        echo "ok $digest $(stat -c %s -- "$sif") $sif"
      else
        echo "failed $why"
      fi
      ;;
  esac
  shift 4
done
