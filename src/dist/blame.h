// Who is to blame when a wait takes too long, from the signs of life that ranks give each other.
#pragma once

#include <chrono>
#include <span>

namespace tessera::internal {

struct PeerSigns {
  std::chrono::steady_clock::time_point heard;
  int waiting_for = -1;  // the peer that it waits for, as it last said
  bool left = false;
};

// From the one that `rank` waits for along those that wait for each other, to the first that was not heard of since
// `silent_since` or waits for nobody.
inline int culprit(std::span<const PeerSigns> peers, int rank, int waiting_for,
                   std::chrono::steady_clock::time_point silent_since) {
  int at = waiting_for;
  for (std::size_t hops = 0; hops < peers.size(); ++hops) {
    const PeerSigns& peer = peers[static_cast<std::size_t>(at)];
    if (peer.heard < silent_since || peer.waiting_for < 0 || peer.waiting_for == rank) {
      break;
    }
    at = peer.waiting_for;
  }
  return at;
}

}  // namespace tessera::internal
