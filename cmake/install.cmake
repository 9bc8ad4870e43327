# What `cmake --install` puts where: headers, lagkv::kernels where it was built, and the files by which CMake and pkg-config find
# them.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/lagkv)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS lagkv EXPORT lagkv)
install(EXPORT lagkv FILE lagkvTargets.cmake NAMESPACE lagkv:: DESTINATION ${package_dir})
if(LAGKV_KERNELS)
  # Not a fault where nothing was built: lagkvConfig.cmake then makes the target of the installed sources.
  install(TARGETS lagkv_kernels EXPORT lagkv_kernels ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} OPTIONAL)
  install(EXPORT lagkv_kernels FILE lagkvKernels.cmake NAMESPACE lagkv:: DESTINATION ${package_dir})
endif()

set(kernels_archive ${CMAKE_INSTALL_LIBDIR}/${CMAKE_STATIC_LIBRARY_PREFIX}lagkv_kernels${CMAKE_STATIC_LIBRARY_SUFFIX})
configure_package_config_file(cmake/lagkvConfig.cmake.in ${PROJECT_BINARY_DIR}/lagkvConfig.cmake
                              INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_INCLUDEDIR kernels_archive)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/lagkvConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/lagkvConfig.cmake ${PROJECT_BINARY_DIR}/lagkvConfigVersion.cmake DESTINATION ${package_dir})

# pkg-config; --define-prefix serves a tree that was moved.
foreach(name lagkv lagkv-kernels)
  configure_file(cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/${name}.pc @ONLY)
  if(name STREQUAL "lagkv" OR LAGKV_KERNELS)
    install(FILES ${PROJECT_BINARY_DIR}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  endif()
endforeach()
install(FILES LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DOCDIR})
