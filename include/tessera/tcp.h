// Ranks that are processes, found by torchrun's environment variables or by a file: host memory over TCP.
#pragma once

#include <memory>
#include <string>

#include "tessera/communicator.h"

namespace tessera {

struct TcpOptions {
  int rank = 0;
  int ranks = 1;
  // Where rank 0 listens. All connections stay on the loopback interface unless this names another one.
  std::string address = "127.0.0.1";
  int port = 0;
  // In place of a port: rank 0 takes any free one and writes it to this file, which must not exist before and which it removes
  // once all have come.
  std::string file;
  // Rank 0's, in place of a port and a file: a socket that listens already, so that its port could be told to the others by
  // other means. It is taken over, and closed once all have come.
  int listener = -1;
  CommunicatorOptions communicator;
};

// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them. torchrun's own store listens at MASTER_PORT, so ranks
// meet at the next one. Throws Error(invalid_argument) that names the variable which is missing or wrong.
TcpOptions tcp_options_from_environment();

// This process's end of a group; collective. A thread of its own moves messages and signs of life. Meant for agreements and
// as `control` of nccl_communicator(); it moves blocks too, slower than MPI. Throws Error(peer) when ranks do not meet in
// time, or were told different numbers of ranks.
std::unique_ptr<Communicator> tcp_communicator(const TcpOptions& options);

}  // namespace tessera
