// Checks when large pages are requested, and that the request reaches the kernel. Prints failures.
#include "cpu/large_pages.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <sys/mman.h>

using neuscale::LargePages;

int failures = 0;

void expect(bool right, const char* what) {
  if (right) return;
  ++failures;
  std::puts(what);
}

// VmFlags of the mapping that contains an address, from /proc/self/smaps.
std::string flags_of(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(maps, line)) {
    unsigned long begin, end;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2)
      inside = begin <= reinterpret_cast<unsigned long>(address) && reinterpret_cast<unsigned long>(address) < end;
    if (inside && line.rfind("VmFlags:", 0) == 0) return line + " ";
  }
  return "";
}

int main() {
  LargePages pages;
  expect(pages.wanted() && pages.worthwhile(2e-4) && pages.wanted(), "a quick first page is not gone on from");
  for (int wanted : {1, 2, 4, 8, 16, 32, LargePages::kLongestPause, LargePages::kLongestPause}) {
    expect(!pages.worthwhile(5e-3), "a slow first page is gone on from");
    int without = 0;
    while (!pages.wanted()) ++without;
    expect(without == wanted, "the pause after a slow page is of another length");
    expect(pages.wanted(), "the pause does not end");
  }
  expect(pages.worthwhile(2e-4) && !pages.worthwhile(5e-3) && !pages.wanted() && pages.wanted(),
         "a quick page does not end the long pauses");

  const size_t bytes = 8 * neuscale::kLargePage;
  char* memory = static_cast<char*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  neuscale::ask_for_large_pages(memory + 100, neuscale::kLargePage);  // no whole page in it: nothing to do
  expect(flags_of(memory + neuscale::kLargePage).find(" hg ") == std::string::npos, "asked for less than a page");
  const char guard = 7;
  std::memset(memory, guard, 100);
  bool asked = false;
  // If large pages are slow at the moment, the pause must pass first.
  for (int i = 0; i < 10 * LargePages::kLongestPause && !asked; ++i) {
    neuscale::ask_for_large_pages(memory + 100, bytes - 200);
    asked = flags_of(memory + 2 * neuscale::kLargePage).find(" hg ") != std::string::npos;
  }
  expect(asked, "the kernel was not asked");
  for (int i = 0; i < 100; ++i) expect(memory[i] == guard, "written in front of the result");
  return failures != 0;
}
