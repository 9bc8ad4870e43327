// What wasi.hpp's <fstream> is not found in the library.
#include "wasi.hpp"

template class std::basic_filebuf<char>;
template class std::basic_ifstream<char>;
template class std::basic_ofstream<char>;
