// Where liblagkv lies, if not where the linker looks anyway.
fn main() {
    println!("cargo:rerun-if-env-changed=LAGKV_LIB_DIR");
    if let Ok(folder) = std::env::var("LAGKV_LIB_DIR") {
        println!("cargo:rustc-link-search=native={folder}");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
